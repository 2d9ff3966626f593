"""Training metrics: log lines, metrics.jsonl, TensorBoard, and curves at the end."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

from brats_inpainting import pictures
from brats_inpainting.config import TrainConfig
from brats_inpainting.files import atomic_write
from brats_inpainting.progress import duration

log = logging.getLogger(__name__)


class Journal:
    """Writes metrics by step to ``metrics.jsonl`` and, if installed, TensorBoard."""

    def __init__(self, folder: Path, *, after: int) -> None:
        """Continue after a step; lines of an interrupted run beyond it are dropped."""
        self.path = folder / "metrics.jsonl"
        kept = [row for row in self._rows() if row["step"] <= after]
        with atomic_write(self.path) as unfinished:
            unfinished.write_text("".join(json.dumps(row) + "\n" for row in kept))
        self.step, self.time = after, time.monotonic()
        self.board = _tensorboard(folder)

    def figures(self, step: int, figures: dict[str, float], *, lr: float, config: TrainConfig) -> None:
        """Write the losses, and log speed and remaining time."""
        now = time.monotonic()
        rate, self.step, self.time = (step - self.step) / (now - self.time), step, now  # steps per second
        speed, left = rate * config.batch_size, duration((config.max_steps - step) / rate)
        self._write(step, figures | {"lr": lr, "slices_per_s": round(speed, 2)})
        log.info(
            "step %d of %d, loss %.5f, %.1f windows/s, %s left", step, config.max_steps, figures["loss"], speed, left
        )

    def scores(self, step: int, scores: dict[str, float]) -> float:
        """Write the validation scores, and return the SSIM."""
        self._write(step, scores)
        log.info("step %d: %s", step, ", ".join(f"{name} {value:.4f}" for name, value in scores.items()))
        return scores["ssim"]

    def close(self) -> None:
        """Close TensorBoard, and draw the curves if matplotlib is installed."""
        if self.board:
            self.board.close()
        if pictures.can_draw():
            pictures.curves(self._rows(), self.path.with_name("curves.png"))

    def _rows(self) -> list[dict[str, float]]:
        """Read the metrics; an incomplete last line is dropped."""
        lines = self.path.read_text().splitlines(keepends=True) if self.path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("}\n")]

    def _write(self, step: int, figures: dict[str, float]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step} | figures) + "\n")
        if self.board:
            for name, value in figures.items():
                self.board.add_scalar(name, value, step)


def _tensorboard(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(folder / "tensorboard")
