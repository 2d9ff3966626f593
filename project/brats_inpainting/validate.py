"""Validation during training: fill held-out cases with the moving average, score them and draw one."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import cast

import numpy as np

from brats_inpainting import metrics, pictures
from brats_inpainting.config import TrainConfig
from brats_inpainting.data import volume
from brats_inpainting.data.cache import TrainingCase
from brats_inpainting.diffusion.checkpoint import Weights
from brats_inpainting.diffusion.unet import UNet
from brats_inpainting.inpainter import Inpainter
from brats_inpainting.plan import BATCH, Plan
from brats_inpainting.state import State

log = logging.getLogger(__name__)


def _can_be_scored(case: TrainingCase) -> bool:
    """Return whether the case has a healthy mask with some contrast in it."""
    return case.healthy is not None and len(np.unique(volume.read(case.t1n)[volume.read(case.healthy) > 0.5])) > 1


@dataclass(frozen=True)
class Validation:
    """A fixed set of complete cases with a healthy mask."""

    files: list[TrainingCase]

    @classmethod
    def of(cls, files: Sequence[TrainingCase], config: TrainConfig) -> Validation | None:
        """Select the first held-out cases that can be scored; ``None`` if there are none."""
        usable = list(islice(filter(_can_be_scored, files), config.validation_cases))
        names = ", ".join(case.id for case in usable)
        log.info("validating on %s", names or "nothing: no held-out case with a mask-healthy")
        return cls(usable) if usable else None

    def run(self, state: State, folder: Path) -> dict[str, float]:
        """Fill every case with the first moving average, draw the first one, and return the mean scores."""
        network = cast("UNet", state.averages[0].module)
        device = next(network.parameters()).device
        weights = Weights(network, state.config.diffusion, state.weights_path, "", ema=True)
        plan = Plan(device, batch_size=BATCH[network.config.dims][device.type])
        inpainter = Inpainter(weights, state.config.validation, plan)
        was_training = network.training
        network.eval()
        rows = [self._score(case, inpainter, self._picture(case, folder, state.step)) for case in self.files]
        network.train(was_training)
        return {name: float(np.mean([row[name] for row in rows])) for name in ("ssim", "psnr", "mse")}

    def _picture(self, case: TrainingCase, folder: Path, step: int) -> Path | None:
        return folder / "pictures" / f"{case.id}-{step:08d}.png" if case == self.files[0] else None

    def _score(self, case: TrainingCase, inpainter: Inpainter, picture: Path | None) -> dict[str, float]:
        truth_XYZ = volume.read(case.t1n)
        assert case.healthy
        mask_XYZ = volume.read(case.healthy) > 0.5
        voided_XYZ = np.where(mask_XYZ, 0, truth_XYZ)
        filled_XYZ = inpainter.inpaint(voided_XYZ, mask_XYZ.astype(np.float32)).image
        scores = metrics.score(filled_XYZ, truth_XYZ, voided_XYZ, mask_XYZ)._asdict()
        if picture and pictures.can_draw():
            picture.parent.mkdir(exist_ok=True)
            views = {"voided": voided_XYZ, "filled": filled_XYZ, "truth": truth_XYZ}
            pictures.three_planes(views, mask_XYZ, picture, title=f"{case.id}   SSIM {scores['ssim']:.3f}")
        return scores
