"""Version, presets, bundled weights and devices, without importing torch."""

from __future__ import annotations

import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

from brats_inpainting import files
from brats_inpainting.config import BUNDLED, DEFAULT_PRESET, PRESETS


def facts() -> dict[str, str]:
    """Return name → text, in the order of display."""
    presets = [
        f"{name}{' (default)' if name == DEFAULT_PRESET else ''}, {dims}D: {sampling}"
        for name, ways in PRESETS.items()
        for dims, sampling in ways.items()
    ]
    return {
        "version": version("brats-inpainting"),
        "torch": version("torch"),
        "presets": "\n           ".join(presets),
        "weights": "\n           ".join(map(_described, BUNDLED.values())),
        "devices": ", ".join(["cpu", *_gpus()]),
        "use": "research only, not for clinical decisions",
    }


def _described(weights: Path) -> str:
    """Describe a weights file by path, size and hash."""
    return f"{weights}, {weights.stat().st_size / 1e6:.1f} MB\n           SHA-256 {files.sha256(weights)}"


def _gpus() -> list[str]:
    """Return the names of the GPUs that nvidia-smi lists."""
    if not (tool := shutil.which("nvidia-smi")):
        return []
    listed = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=5, check=False).stdout
    return [line.split(" (UUID")[0] for line in listed.splitlines() if line.startswith("GPU")]
