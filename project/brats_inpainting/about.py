"""What there is to work with: version, presets, weights, devices; without importing torch."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from importlib.metadata import version

from brats_inpainting.config import BUNDLED_WEIGHTS, DEFAULT_PRESET, PRESETS


def facts() -> dict[str, str]:
    """Return name → text, in the order in which people ask."""
    presets = [f"{name}{' (default)' if name == DEFAULT_PRESET else ''}: {preset}" for name, preset in PRESETS.items()]
    with BUNDLED_WEIGHTS.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "version": version("brats-inpainting"),
        "torch": version("torch"),
        "presets": "\n           ".join(presets),
        "weights": f"{BUNDLED_WEIGHTS}, {BUNDLED_WEIGHTS.stat().st_size / 1e6:.1f} MB\n           SHA-256 {digest}",
        "devices": ", ".join(["cpu", *_gpus()]),
        "use": "research only, not for clinical decisions",
    }


def _gpus() -> list[str]:
    """Name the GPUs that the driver lists."""
    if not (tool := shutil.which("nvidia-smi")):
        return []
    listed = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=5, check=False).stdout
    return [line.split(" (UUID")[0] for line in listed.splitlines() if line.startswith("GPU")]
