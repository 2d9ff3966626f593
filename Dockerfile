# One image for all clients: CPU or GPU, any uid, no network, read-only root, an empty /tmp mounted.
# torch's wheels include CUDA 13.0, which needs NVIDIA driver 580.65 or newer; otherwise the CPU is used. The base image
# needs no CUDA: any Debian or Ubuntu with Python 3.11 or later, installed or in its archive.
ARG BASE_IMAGE=python:3.11-slim-bookworm
FROM ${BASE_IMAGE} AS base
RUN python3 -c 'import ensurepip' 2>/dev/null || { apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*; }

# Python packages. Only their folder is copied from this stage, so the image has none of pip's settings or passwords.
FROM base AS packages
# TORCH=+cpu selects the build without CUDA.
ARG TORCH=
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_FIND_LINKS
ARG PIP_NO_INDEX
ARG PIP_TRUSTED_HOST
ARG PIP_CERT
ENV PATH=/opt/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1
WORKDIR /app
COPY requirements.txt ./
RUN python3 -m venv /opt/venv \
    && pip install --no-cache-dir --constraint requirements.txt "$(grep ^torch== requirements.txt)${TORCH}"
COPY pyproject.toml README.md LICENSE ./
RUN mkdir project && pip install --no-cache-dir --constraint requirements.txt ".[eval,report,train]"

FROM base
# With CUDA, Triton builds its launcher with a C compiler when a GPU is first used.
ARG TORCH=
RUN test "${TORCH}" = +cpu || command -v gcc || { apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev libpython3-dev && rm -rf /var/lib/apt/lists/*; }

LABEL org.opencontainers.image.title="brats-inpainting" \
      org.opencontainers.image.description="Fills lesions in brain MRI with plausible healthy tissue. Research use only." \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="MIT"

# Every uid has a user name, a home folder and writable caches. GOMP_… and MALLOC_… are explained in runtime.py.
ENV PATH=/opt/venv/bin:$PATH USER=inpainting HOME=/tmp XDG_CACHE_HOME=/tmp/.cache MPLCONFIGDIR=/tmp/.matplotlib \
    TORCHINDUCTOR_CACHE_DIR=/tmp/.inductor TRITON_CACHE_DIR=/tmp/.triton \
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    GOMP_SPINCOUNT=1000 MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=2147483647 MALLOC_TOP_PAD_=268435456 \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    BRATS_INPAINTING_FOLDERS=/input:/output BRATS_INPAINTING_OVERWRITE=1 BRATS_INPAINTING_TRAIN_RESUME=1

WORKDIR /app
COPY --from=packages /opt/venv /opt/venv
COPY pyproject.toml README.md LICENSE ./
COPY project project
RUN python3 -m compileall -q project

ENV PYTHONPATH=/app/project
USER 10001
ENTRYPOINT ["python3", "/app/project/mlcube.py"]
CMD ["infer"]

ARG SOURCE=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.source=${SOURCE} org.opencontainers.image.revision=${REVISION}
