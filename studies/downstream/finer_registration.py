"""``registration`` with ten more iterations at full resolution: whether the ranking of the fills stays."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from studies.downstream import registration
from studies.downstream.fills import VOIDED, Subject

NAMES = (registration.AGAIN, VOIDED, registration.MASKED, "biharmonic", "2D fast", "3D fast")
ITERATIONS = (40, 20, 10)


def measured(subject: Subject, fill: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of ``registration``."""
    return registration.measured(subject, fill, iterations=ITERATIONS)
