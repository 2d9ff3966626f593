"""``segmentation`` at 1 mm instead of 1.5 mm: whether the ranking of the fills stays."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from studies.downstream import segmentation
from studies.downstream.fills import Subject

NAMES = segmentation.NAMES


def measured(subject: Subject, fill: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of ``segmentation``."""
    return segmentation.measured(subject, fill, mm=1)
