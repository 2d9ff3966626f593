"""A minimal training loop: enough for the bundled weights. The paper's recipe with everything around it comes later.

Shapes: S slices of a batch, H W a window.
"""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
import yaml
from pydantic import ValidationError
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from brats_inpainting.config import TrainConfig
from brats_inpainting.data.dataset import FreshMasks
from brats_inpainting.data.volume import whole_or_not_at_all
from brats_inpainting.diffusion import checkpoint
from brats_inpainting.diffusion.process import Schedule, training_losses
from brats_inpainting.diffusion.unet import UNet
from brats_inpainting.errors import ConfigError
from brats_inpainting.progress import duration

log = logging.getLogger(__name__)
REPORT_EVERY = 100  # steps


def train(data_path: Path, output_path: Path, config: TrainConfig) -> Path:
    """Train until ``config.max_steps``, resuming from ``output_path/state.pt`` where there is one.

    Args:
        data_path: a folder with complete scans, ``*-t1n.nii.gz``.
        output_path: receives state.pt, metrics.jsonl and the moving average as weights.safetensors.
        config: network, diffusion and recipe.

    Returns:
        The path of weights.safetensors.

    Raises:
        ConfigError: when there are no scans.
    """
    torch.manual_seed(config.seed)
    output_path.mkdir(parents=True, exist_ok=True)
    state = _State.start(config)
    state.resume(output_path)
    brains = FreshMasks(data_path, window=config.diffusion.window, seed=config.seed + state.step)
    schedule = Schedule.linear(config.diffusion.steps)
    started, first, running = time.monotonic(), state.step, 0.0
    for truth_S1HW, mask_S1HW in islice(DataLoader(brains, config.batch_size), config.max_steps - first):
        lr = _learning_rate(config, state.step)
        state.optimiser.param_groups[0]["lr"] = lr
        loss = _loss(state.network, schedule, config, truth_S1HW, mask_S1HW)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(state.network.parameters(), 1.0)
        state.optimiser.step()
        state.optimiser.zero_grad()
        state.ema.update_parameters(state.network)
        state.step += 1
        running += (loss.item() - running) / min(REPORT_EVERY, state.step - first)
        if state.step % REPORT_EVERY == 0:
            rate = (state.step - first) * config.batch_size / (time.monotonic() - started)
            left = duration((config.max_steps - state.step) * config.batch_size / rate)
            log.info(
                "step %d of %d, loss %.5f, %.1f slices/s, %s left", state.step, config.max_steps, running, rate, left
            )
            with (output_path / "metrics.jsonl").open("a") as file:
                file.write(json.dumps({"step": state.step, "loss": running, "lr": lr, "slices_per_s": rate}) + "\n")
        if state.step % config.save_every == 0:
            state.save(output_path, config)
    return state.save(output_path, config)


def read_recipe(path: Path) -> TrainConfig:
    """Read a training recipe from YAML.

    Raises:
        ConfigError: naming what cannot be used.
    """
    try:
        return TrainConfig.model_validate(yaml.safe_load(path.read_text()) or {})
    except (OSError, yaml.YAMLError, ValidationError) as error:
        raise ConfigError(f"{path}: {error}") from error


@dataclass
class _State:
    """Everything that training changes."""

    network: UNet
    ema: AveragedModel
    optimiser: torch.optim.Optimizer
    step: int = 0

    @classmethod
    def start(cls, config: TrainConfig) -> _State:
        network = UNet(config.unet).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        ema = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(config.ema))
        return cls(network, ema, torch.optim.AdamW(network.parameters(), lr=config.lr, weight_decay=0))

    def resume(self, folder: Path) -> None:
        if not (folder / "state.pt").exists():
            return
        stored = torch.load(folder / "state.pt", weights_only=True)
        self.step = stored["step"]
        for name in ("network", "ema", "optimiser"):
            getattr(self, name).load_state_dict(stored[name])
        log.info("resumed at step %d", self.step)

    def save(self, folder: Path, config: TrainConfig) -> Path:
        parts = {name: getattr(self, name).state_dict() for name in ("network", "ema", "optimiser")}
        with whole_or_not_at_all(folder / "state.pt") as hidden:
            torch.save(parts | {"step": self.step}, hidden)
        notes = {"training": config.model_dump(mode="json", exclude={"unet", "diffusion"}), "step": self.step}
        path = folder / "weights.safetensors"
        with whole_or_not_at_all(path) as hidden:
            averaged = self.ema.module.state_dict()
            checkpoint.save(hidden, averaged, unet=config.unet, diffusion=config.diffusion, ema=True, notes=notes)
        return path


def _learning_rate(config: TrainConfig, step: int) -> float:
    """Warm up linearly, stay, and fall linearly to the end."""
    return config.lr * min(1, (step + 1) / config.warmup, (config.max_steps - step) / config.decay)


def _loss(network: UNet, schedule: Schedule, config: TrainConfig, truth_S1HW: Tensor, mask_S1HW: Tensor) -> Tensor:
    """Return the mean hybrid loss of a batch at random timesteps; b is the truth with the mask set to 0 (§3.1)."""
    low, high = config.diffusion.image_range
    x0_S1HW, b_S1HW = (low + (high - low) * image for image in (truth_S1HW, truth_S1HW * (1 - mask_S1HW)))
    weight_S1HW = mask_S1HW + config.weight_outside * (1 - mask_S1HW)
    with torch.autocast("cpu", torch.bfloat16, enabled=config.bf16):
        losses = training_losses(
            network,
            schedule,
            config.diffusion,
            x0_S1HW,
            torch.cat([b_S1HW, mask_S1HW], dim=1),
            t_S=torch.randint(len(schedule), (len(x0_S1HW),)),
            noise_S1HW=torch.randn_like(x0_S1HW),
            weight_S1HW=weight_S1HW / weight_S1HW.mean(),
        )
    return (losses.mse_S + losses.vb_S).mean()
