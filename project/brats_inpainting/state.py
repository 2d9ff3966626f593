"""Training checkpoints, and export of the weights."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from brats_inpainting import optimiser
from brats_inpainting.config import DiffusionConfig, TrainConfig
from brats_inpainting.diffusion import checkpoint
from brats_inpainting.diffusion.checkpoint import Weights
from brats_inpainting.diffusion.convolution import MEMORY_FORMAT
from brats_inpainting.diffusion.unet import UNet
from brats_inpainting.errors import ConfigError, InpaintingError
from brats_inpainting.files import atomic_write, make_writable

log = logging.getLogger(__name__)

# Settings that may change when a run is resumed. Only max_steps affects the result, through the decay of the rate.
MUTABLE = {
    "max_steps",
    "workers",
    "report_every",
    "save_every",
    "keep",
    "validate_every",
    "validation_cases",
    "validation",
}


@dataclass
class State:
    """Network, moving averages, optimiser, and the position in the data stream, which determines all randomness."""

    config: TrainConfig
    fold: int
    data: str
    network: UNet
    averages: list[AveragedModel]
    optimiser: torch.optim.Optimizer
    step: int = 0
    epoch: int = 0
    batch: int = 0
    origin: str = ""
    best: float = float("-inf")
    folder: Path = Path()
    stored: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def start(cls, config: TrainConfig, *, fold: int, data: str, initial: Path | None = None) -> State:
        """Build network, averages and optimiser; ``data`` is the hash of the inputs, ``initial`` a weights file.

        Raises:
            ConfigError: when the weights have another network or diffusion than the recipe.
        """
        torch.manual_seed(config.seed)
        network = UNet(config.unet).to(memory_format=MEMORY_FORMAT[config.unet.dims])  # type: ignore[call-overload]
        origin = ""
        if initial:
            loaded = checkpoint.load(initial)
            network.load_state_dict(_initial(loaded, config))
            origin = loaded.sha256
        network.checkpointing = config.checkpointing
        averages = [AveragedModel(network) for _ in config.ema]
        return cls(config, fold, data, network, averages, optimiser.choose(network, config), origin=origin)

    @property
    def weights_path(self) -> Path:
        """Path of the weights for ``infer``."""
        return self.folder / "weights.safetensors"

    def open(self, folder: Path, *, resume: bool) -> None:
        """Prepare the folder of this run: remove partial files, and read the latest state that is intact.

        Raises:
            ConfigError: when the folder holds a run and ``resume`` is false, or that run has other settings.
        """
        self.folder = folder
        for place in (folder, folder / "state"):
            make_writable(place)
        found = sorted((folder / "state").glob("*.pt"), reverse=True)
        if found and not resume:
            raise ConfigError(
                f"{folder}: holds a training run\n  Use --resume to continue it, or choose another folder."
            )
        for path in found:
            try:
                self.stored = torch.load(path, map_location="cpu", weights_only=True)
                break
            except Exception:  # noqa: BLE001 (damaged bytes can make torch's reader raise anything)
                log.warning("%s: damaged; using the previous state", path)
        if found and not self.stored:
            raise ConfigError(f"{folder}: no state can be read\n  Start again in another folder.")
        if found:
            self._check(folder)

    def resume(self, device: torch.device, scaler: Any) -> None:
        """Move the averages to the network's device, and restore the state that ``open`` found, if any."""
        for average in self.averages:
            average.to(device)
        if not self.stored:
            return
        self.network.load_state_dict(self.stored["network"])
        self.optimiser.load_state_dict(self.stored["optimiser"])
        for average, kept in zip(self.averages, self.stored["averages"], strict=True):
            average.load_state_dict(kept)
        if scaler:
            scaler.load_state_dict(self.stored["scaler"])
        self.step, self.epoch, self.batch = (self.stored[name] for name in ("step", "epoch", "batch"))
        origin = self.stored.get("origin", "")
        if self.origin not in ("", origin):
            log.warning("--initial-weights is ignored: the run that --resume continues did not start from this file")
        self.best, self.origin = self.stored["best"], origin
        log.info("resumed at step %d", self.step)
        self.stored = {}

    def advance(self, epoch: int, batch: int) -> None:
        """Update the averages and the step; ``epoch`` and ``batch`` are where the next step starts."""
        for average, rate in zip(self.averages, self.config.ema, strict=True):
            self._update(average, rate)
        self.step, self.epoch, self.batch = self.step + 1, epoch, batch

    def check(self) -> None:
        """Reject a network with non-finite parameters before it is saved.

        Raises:
            InpaintingError: when a parameter is not finite.
        """
        if not all(torch.isfinite(parameter).all() for parameter in self.network.parameters()):
            raise InpaintingError(
                f"the network is not finite at step {self.step}\n"
                "  The last state was saved before that. Lower lr, set clip, or use bf16 for fp16."
            )

    def save(self, scaler: Any) -> None:
        """Write the state atomically, and delete all but the last ``keep`` states."""
        content = {
            "network": self.network.state_dict(),
            "averages": [average.state_dict() for average in self.averages],
            "optimiser": self.optimiser.state_dict(),
            "scaler": scaler.state_dict() if scaler else {},
            "best": self.best,
            "origin": self.origin,
            "config": self.config.model_dump_json(),
            "versions": {name: version(name) for name in ("brats-inpainting", "torch")},
        } | {name: getattr(self, name) for name in ("step", "epoch", "batch", "fold", "data")}
        with atomic_write(self.folder / "state" / f"{self.step:08d}.pt") as unfinished:
            torch.save(content, unfinished)
        for old in sorted((self.folder / "state").glob("*.pt"))[: -self.config.keep]:
            old.unlink()
        if self.best == float("-inf"):  # not validated yet: write the latest
            self._write_weights()

    def save_if_best(self, score: float) -> None:
        """Write the first moving average for ``infer`` if the score is the highest so far."""
        if score > self.best:
            self.best = score
            self._write_weights()
            log.info("step %d scores best so far: %s", self.step, self.weights_path)

    @torch.no_grad()
    def _update(self, average: AveragedModel, rate: float) -> None:
        """Update an average; ``AveragedModel.update_parameters`` would synchronise with the GPU."""
        limit = (1 + self.step) / (10 + self.step) if self.config.ema_warmup else 1.0
        mix = get_ema_multi_avg_fn(min(rate, limit) if self.step else 0.0)  # the first step is copied
        mix(list(average.module.parameters()), list(self.network.parameters()), average.n_averaged)
        average.n_averaged += 1

    def _write_weights(self) -> None:
        with atomic_write(self.weights_path) as unfinished:
            export(self.averages[0].module.state_dict(), self.config, self.step, unfinished, origin=self.origin)

    def _check(self, path: Path) -> None:
        ours = self.config.model_dump(mode="json") | {"fold": self.fold, "data": self.data}
        stored = TrainConfig.model_validate_json(self.stored["config"])  # settings it lacks have their defaults
        theirs = stored.model_dump(mode="json") | {name: self.stored[name] for name in ("fold", "data")}
        if differing := sorted(name for name in ours if name not in MUTABLE and ours[name] != theirs.get(name)):
            raise ConfigError(
                f"{path}: the run there has another {', '.join(differing)}\n"
                "  Resume with its recipe, fold and data, or choose another folder."
            )
        if self.config.optimiser == "muon" and "momenta" not in self.stored["optimiser"]:
            raise ConfigError(f"{path}: saved by another version's Muon\n  Start in another folder.")


def _initial(loaded: Weights, config: TrainConfig) -> dict[str, Tensor]:
    """Return the parameters that a run starts from.

    The weights may be of another training window, and lack the channel of the previous slice, which is the last and
    starts at 0. A consistency model starts from a diffusion model.

    Raises:
        ConfigError: when the weights have another network or diffusion than the recipe.
    """
    state, unet, diffusion = loaded.network.state_dict(), loaded.network.config, loaded.diffusion
    expected = config.diffusion.model_copy(update={"consistency": False, "window": diffusion.window})
    if (diffusion.context, expected.context) == ("none", "previous"):
        stem = state["input_blocks.0.0.weight"]
        state["input_blocks.0.0.weight"] = torch.cat([stem, torch.zeros_like(stem[:, : unet.patch**unet.dims])], dim=1)
        unet = unet.model_copy(update={"in_channels": unet.in_channels + 1})
        diffusion = diffusion.model_copy(update={"context": "previous"})
    if unet != config.unet or diffusion != expected:
        raise ConfigError(f"{loaded.path}: network or diffusion differ from the recipe's\n  Make them equal.")
    return state


def export(weights: dict[str, torch.Tensor], config: TrainConfig, step: int, path: Path, *, origin: str = "") -> None:
    """Write weights for inference; the metadata holds recipe, step and SHA-256 of the initial weights."""
    notes = {"training": config.model_dump(mode="json", exclude={"unet", "diffusion"}), "step": step}
    notes |= {"initial_weights": origin} if origin else {}
    checkpoint.save(path, weights, unet=config.unet, diffusion=config.diffusion, ema=True, notes=notes)


def read(path: Path) -> tuple[dict[str, Any], TrainConfig, dict[float, dict[str, torch.Tensor]]]:
    """Return the content of a state, its recipe, and the parameters of every moving average by its rate.

    Args:
        path: a file of a run's ``state`` folder, or the run's folder for the latest.

    Raises:
        ConfigError: when the file is not a state of a training run.
    """
    path = max((path / "state").glob("*.pt"), default=path)
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
        stored["step"] = int(stored["step"])
        config = TrainConfig.model_validate_json(stored["config"])
        averages = [
            {k.removeprefix("module."): v for k, v in kept.items() if k != "n_averaged"} for kept in stored["averages"]
        ]
        return stored, config, dict(zip(config.ema, averages, strict=True))
    except Exception as error:  # damaged bytes can make torch's reader raise anything
        raise ConfigError(f"{path}: not a state of a training run ({type(error).__name__})") from error


def export_state(path: Path, folder: Path) -> list[Path]:
    """Write the weights of a state as ``.safetensors``, and in guided-diffusion's format.

    Args:
        path: a file of a run's ``state`` folder, or the run's folder for the latest.
        folder: receives ``weights-{step}.safetensors``, and in float32 ``savedmodel{step}.pt`` and, for every moving
            average, ``emasavedmodel_{rate}_{step}.pt``.

    Raises:
        ConfigError: when the file is not a state of a training run.
    """
    stored, config, averages = read(path)
    step = stored["step"]
    make_writable(folder)
    if config.diffusion != DiffusionConfig():
        log.warning("a .pt file cannot store %s: use the .safetensors file with infer", config.diffusion)
    ours = folder / f"weights-{step:06d}.safetensors"
    export(averages[config.ema[0]], config, step, ours, origin=stored.get("origin", ""))
    written = {folder / f"savedmodel{step:06d}.pt": stored["network"]}
    for rate, weights in averages.items():
        written[folder / f"emasavedmodel_{rate}_{step:06d}.pt"] = weights
    for target, weights in written.items():
        torch.save(weights, target)
    return [ours, *written]
