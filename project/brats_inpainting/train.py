"""A minimal training loop: enough for the bundled weights. The paper's recipe with everything around it comes later."""

from __future__ import annotations

import json
import logging
import time
from itertools import islice
from pathlib import Path

import torch
import yaml
from pydantic import ValidationError
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from brats_inpainting.config import TrainConfig
from brats_inpainting.data.dataset import FreshMasks
from brats_inpainting.diffusion import checkpoint
from brats_inpainting.diffusion.process import Schedule, training_losses
from brats_inpainting.diffusion.unet import UNet
from brats_inpainting.errors import ConfigError

log = logging.getLogger(__name__)


def train(data_path: Path, output_path: Path, config: TrainConfig) -> Path:
    """Train until ``config.max_steps``, resuming from ``output_path/state.pt`` where there is one.

    Args:
        data_path: a folder with complete scans, ``*-t1n.nii.gz``.
        output_path: receives state.pt, metrics.jsonl and the moving average as weights.safetensors.
        config: network, diffusion and recipe.

    Returns:
        The path of weights.safetensors.
    """
    torch.manual_seed(config.seed)
    output_path.mkdir(parents=True, exist_ok=True)
    net = UNet(config.unet).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    ema = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(config.ema))
    optimiser = torch.optim.AdamW(net.parameters(), lr=config.lr, weight_decay=0)
    schedule = Schedule.linear(config.diffusion.steps)
    low, high = config.diffusion.image_range

    step, state_file = 0, output_path / "state.pt"
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        step = state["step"]
        for part, name in ((net, "network"), (ema, "ema"), (optimiser, "optimiser")):
            part.load_state_dict(state[name])
        log.info("resumed at step %d", step)

    def save() -> Path:
        state = {
            "step": step,
            "network": net.state_dict(),
            "ema": ema.state_dict(),
            "optimiser": optimiser.state_dict(),
        }
        torch.save(state, state_file.with_suffix(".new"))
        state_file.with_suffix(".new").replace(state_file)
        weights = output_path / "weights.safetensors"
        notes = {"training": config.model_dump(mode="json", exclude={"unet", "diffusion"}), "step": step}
        checkpoint.save(
            weights, ema.module.state_dict(), unet=config.unet, diffusion=config.diffusion, ema=True, notes=notes
        )
        return weights

    brains = FreshMasks(data_path, window=config.diffusion.window, seed=config.seed + step)
    started, first, running = time.monotonic(), step, 0.0
    for truth, mask in islice(DataLoader(brains, config.batch_size), config.max_steps - step):
        lr = config.lr * min(1, (step + 1) / config.warmup, (config.max_steps - step) / config.decay)
        optimiser.param_groups[0]["lr"] = lr
        x0 = low + (high - low) * truth
        condition = torch.cat([low + (high - low) * truth * (1 - mask), mask], dim=1)
        t_S = torch.randint(len(schedule), (len(x0),))
        weight = mask + config.weight_outside * (1 - mask)
        with torch.autocast("cpu", torch.bfloat16, enabled=config.bf16):
            mse, vb = training_losses(
                net,
                schedule,
                config.diffusion,
                x0,
                condition,
                t_S=t_S,
                noise_S1HW=torch.randn_like(x0),
                weight_S1HW=weight / weight.mean(),
            )
        loss = (mse + vb).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        ema.update_parameters(net)
        running += (loss.item() - running) / min(100, step - first + 1)
        step += 1
        if step % 100 == 0:
            rate = (step - first) * config.batch_size / (time.monotonic() - started)
            left = (config.max_steps - step) * config.batch_size / rate / 60
            log.info(
                "step %d of %d  loss %.5f  %.1f slices/s  %.0f min left", step, config.max_steps, running, rate, left
            )
            with (output_path / "metrics.jsonl").open("a") as file:
                file.write(json.dumps({"step": step, "loss": running, "lr": lr, "slices_per_s": rate}) + "\n")
        if step % config.save_every == 0:
            save()
    return save()


def read_recipe(path: Path) -> TrainConfig:
    """Read a training recipe from YAML.

    Raises:
        ConfigError: naming what cannot be used.
    """
    try:
        return TrainConfig.model_validate(yaml.safe_load(path.read_text()) or {})
    except (OSError, yaml.YAMLError, ValidationError) as error:
        raise ConfigError(f"{path}: {error}") from error
