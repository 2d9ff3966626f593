"""Fills lesions in brain MRI with plausible healthy tissue."""

from importlib import import_module
from typing import Any

_HOMES = {
    "inpainter": ("Inpainter",),
    "fill": ("Options", "fill_folder"),
    "filler": ("Filled", "Filler", "InpaintMixin", "Inpainting"),
    "layouts": ("BidsDataset", "CaseFolder", "Layout", "Pair"),
    "baselines": ("Baseline",),
    "data.lesion": ("MaskReading",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    """Import the Python interface when it is asked for, so that the command line starts without torch."""
    if name in _HOME:
        return getattr(import_module(f"brats_inpainting.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
