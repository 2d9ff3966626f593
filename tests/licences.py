"""List the licences of everything that runs with this software, as the packages themselves declare them.

usage: python -m tests.licences > docs/licences.md
"""

from importlib.metadata import distribution, requires

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

CORE, EXTRAS = ("",), ("", "cluster", "eval", "report", "train")  # the image has all but cluster
CUDA = ("nvidia-", "cuda-", "triton")  # come with PyTorch's CUDA build only

HEAD = """\
# Licences

Ours is MIT (LICENSE). What follows is what runs beside it, as each package declares it; made by
`python -m tests.licences > docs/licences.md` and kept true by `tests/test_supply.py`.

- None of the core packages is under a copyleft licence. Of the extras, `tqdm` (of `train`, through `accelerate` and
  `huggingface_hub`) is MPL-2.0 in part: it binds those who change tqdm's own files and hand them on, nobody else.
- The wheels of NumPy and SciPy carry `libgfortran` and `libquadmath` of GCC (GPL-3.0 and LGPL-2.1 with the GCC Runtime
  Library Exception, which lets programs under any licence use them).
- The official metrics, `inpainting` (AGPL-3.0), are an oracle of the tests. They are in the `dev` extra, never imported
  by the package, and not in the image.
- The scan of the example case, in the wheel and in the image, is subject 41 of OpenNeuro ds002748 (CC0,
  doi:10.18112/openneuro.ds002748.v1.0.5): `project/brats_inpainting/scans/README.md`.

| package | version | licence | needed by |
|---|---|---|---|
"""

TAIL = """
## PyTorch's CUDA build

The default build of torch 2.13.0 for Linux brings libraries along that are under NVIDIA's own terms, which are
not those of open software; read them before you hand on an image that holds them. The CPU build has none of them. Read
from the packages' metadata with `pip install --dry-run --report - torch==2.13.0`, pip 26.3.

| package | version | licence |
|---|---|---|
| cuda-bindings | 13.5.0 | Apache-2.0 |
| cuda-pathfinder | 1.9.0 | Apache-2.0 |
| cuda-toolkit | 13.0.3.0 | none declared (a list of the packages below) |
| nvidia-cublas | 13.1.1.3 | LicenseRef-NVIDIA-Proprietary |
| nvidia-cuda-cupti | 13.0.85 | LicenseRef-NVIDIA-Proprietary |
| nvidia-cuda-nvrtc | 13.0.88 | LicenseRef-NVIDIA-Proprietary |
| nvidia-cuda-runtime | 13.0.96 | LicenseRef-NVIDIA-Proprietary |
| nvidia-cudnn-cu13 | 9.20.0.48 | LicenseRef-NVIDIA-Proprietary |
| nvidia-cufft | 12.0.0.61 | LicenseRef-NVIDIA-Proprietary |
| nvidia-cufile | 1.15.1.6 | LicenseRef-NVIDIA-Proprietary |
| nvidia-curand | 10.4.0.35 | LicenseRef-NVIDIA-Proprietary |
| nvidia-cusolver | 12.0.4.66 | LicenseRef-NVIDIA-Proprietary |
| nvidia-cusparse | 12.6.3.3 | LicenseRef-NVIDIA-Proprietary |
| nvidia-cusparselt-cu13 | 0.8.1 | NVIDIA Proprietary Software |
| nvidia-nccl-cu13 | 2.29.7 | LicenseRef-NVIDIA-Proprietary |
| nvidia-nvjitlink | 13.5.37 | LicenseRef-NVIDIA-Proprietary |
| nvidia-nvshmem-cu13 | 3.4.5 | LicenseRef-NVIDIA-Proprietary |
| nvidia-nvtx | 13.0.85 | Apache 2.0 |
| triton | 3.7.1 | MIT License |
"""


def runtime(extras, name="brats-inpainting", found=None):
    """Return the names of all distributions that a package needs here with some of its extras."""
    found = set() if found is None else found
    for text in requires(name) or []:
        need = Requirement(text)
        wanted = not need.marker or any(need.marker.evaluate({"extra": extra}) for extra in extras)
        if wanted and (key := canonicalize_name(need.name)) not in found and not key.startswith(CUDA):
            if key != "brats-inpainting":
                found.add(key)
            runtime(need.extras or CORE, need.name, found)
    return found


def version(name):
    """Return the release, without the name of the build."""
    return distribution(name).version.partition("+")[0]


def licence(name):
    """Return what a package declares: an SPDX expression, a short text, or classifiers."""
    told = distribution(name).metadata
    text = (told.get("License") or "").strip()
    classifiers = [line.split(" :: ")[-1] for line in told.get_all("Classifier", []) if line.startswith("License ::")]
    short = text if len(text) < 40 and "Copyright" not in text else ""
    return told.get("License-Expression") or short or " / ".join(classifiers) or "none declared"


def main():
    core = runtime(CORE)
    rows = [
        f"| {name} | {version(name)} | {licence(name)} | {'core' if name in core else 'extras'} |"
        for name in sorted(runtime(EXTRAS))
    ]
    print(HEAD + "\n".join(rows) + "\n" + TAIL, end="")


if __name__ == "__main__":
    main()
