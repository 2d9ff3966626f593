"""Fills lesions in brain MRI with plausible healthy tissue."""

from typing import Any

__all__ = ["Inpainter", "Inpainting"]


def __getattr__(name: str) -> Any:
    """Import the Python interface when it is asked for, so that the command line starts without torch."""
    if name in __all__:
        from brats_inpainting import infer

        return getattr(infer, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
