"""Choice of device and precision."""

from __future__ import annotations

import logging
import re
import warnings
from typing import Literal

import torch

from brats_inpainting.config import PRECISIONS, Precision
from brats_inpainting.errors import ConfigError

log = logging.getLogger(__name__)


def choose_device(name: str, *, fallback: Literal["cpu"] | None = None) -> torch.device:
    """Return a usable device, and log the choice.

    Args:
        name: ``cpu``, ``cuda``, ``cuda:i``, ``mps``, or ``auto`` for a GPU if torch can use one, and else the CPU.
        fallback: ``cpu`` replaces a GPU that cannot be used, with a warning; an error if not given.

    Raises:
        ConfigError: when the name is not a device, or the device cannot be used.
    """
    auto = name == "auto"
    if auto:
        name = "mps" if torch.backends.mps.is_available() else "cuda"
    try:
        device = torch.device(name)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"no device named {name!r}\n  There are: auto, cpu, cuda, cuda:0 and so on, mps.") from error
    if device.type == "cpu":
        log.debug("on the CPU, as requested")
        return device
    if problem := _problem(device):
        if not auto and not fallback:
            raise ConfigError(
                f"device {name}: {problem}\n  Use --device cpu, or leave --device out: auto uses a GPU if possible."
            )
        unexpected = not auto or torch.cuda.device_count() > 0
        log.log(logging.WARNING if unexpected else logging.INFO, "on the CPU: %s", problem)
        return torch.device("cpu")
    log.info("on %s%s", device, f", {torch.cuda.get_device_name(device)}" if device.type == "cuda" else "")
    return device


def best_precision(device: torch.device) -> Precision:
    """Return the precision of a network: fp32 on a CPU, on a GPU the one that its matrix units support."""
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"


def autocast(kind: str, precision: Precision) -> torch.autocast:
    """Return the autocast context of a precision on a device type: ``cpu``, ``cuda`` or ``mps``."""
    return torch.autocast(kind, getattr(torch, PRECISIONS[precision]), enabled=precision != "fp32")


def runs_on(capability: tuple[int, int], architectures: list[str]) -> bool:
    """Return whether a build of torch supports a GPU.

    Machine code (``sm_86``) runs on GPUs of the same major and the same or a later minor version; intermediate
    code (``compute_90``) is compiled by the driver for newer GPUs.

    Args:
        capability: the GPU's compute capability, major and minor.
        architectures: as returned by ``torch.cuda.get_arch_list``.
    """
    for kind, digits in re.findall(r"(sm|compute)_(\d+)", " ".join(architectures)):
        built = divmod(int(digits), 10)
        if built <= capability and (kind == "compute" or built[0] == capability[0]):
            return True
    return False


def _problem(device: torch.device) -> str | None:
    """Return why a device cannot be used; ``None`` if it can."""
    if device.type == "mps" and torch.backends.mps.is_available():
        return None
    if device.type != "cuda":
        return f"no {device} device found"
    return _cuda_problem(device)


def _cuda_problem(device: torch.device) -> str | None:
    if not torch.version.cuda:
        return f"torch {torch.__version__} is built without CUDA"
    with warnings.catch_warnings(record=True) as caught:  # torch reports an old driver as a warning
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    if not available:
        return str(caught[0].message).splitlines()[0] if caught else "no NVIDIA GPU found"
    if (device.index or 0) >= torch.cuda.device_count():
        return f"no {device} found, the last GPU is cuda:{torch.cuda.device_count() - 1}"
    try:
        major, minor = torch.cuda.get_device_capability(device)
        gpu = f"{torch.cuda.get_device_name(device)} (sm_{major}{minor})"
    except RuntimeError as error:  # a broken GPU, or one in exclusive use
        return str(error).splitlines()[0]
    built = torch.cuda.get_arch_list()
    if runs_on((major, minor), built):
        return None
    return f"no code for {gpu} in torch {torch.__version__}, which is built for {', '.join(built)}"
