"""All that a training run is made of at a step, on disk and back; and the weights that come out of it."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from brats_inpainting import optimiser
from brats_inpainting.config import DiffusionConfig, TrainConfig
from brats_inpainting.diffusion import checkpoint
from brats_inpainting.diffusion.convolution import MEMORY_FORMAT
from brats_inpainting.diffusion.unet import UNet
from brats_inpainting.errors import ConfigError, InpaintingError
from brats_inpainting.files import atomic_write, make_writable

log = logging.getLogger(__name__)

# What may differ between a run and its resumption; only max_steps touches the numbers, where the learning rate falls.
FREE = {
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
    """Network, moving averages, optimiser, and the place in the stream from which all randomness follows."""

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
        """Build everything from the recipe; ``data`` is the hash of the inputs, ``initial`` holds first weights.

        Raises:
            ConfigError: when those weights are of another network, or mean something else.
        """
        torch.manual_seed(config.seed)
        network = UNet(config.unet).to(memory_format=MEMORY_FORMAT[config.unet.dims])  # type: ignore[call-overload]
        origin = ""
        if initial:
            given = checkpoint.load(initial)
            if given.network.config != config.unet or given.diffusion != config.diffusion:
                raise ConfigError(f"{initial}: of another network or diffusion than the recipe's\n  Make them equal.")
            network.load_state_dict(given.network.state_dict())
            origin = given.sha256
        network.checkpointing = config.checkpointing
        averages = [AveragedModel(network) for _ in config.ema]
        return cls(config, fold, data, network, averages, optimiser.choose(network, config), origin=origin)

    @property
    def weights_path(self) -> Path:
        """Where the weights go that ``infer`` takes."""
        return self.folder / "weights.safetensors"

    def open(self, folder: Path, *, resume: bool) -> None:
        """Take a folder for this run, drop what a killed run left half written, and find the state to resume from.

        Raises:
            ConfigError: when the folder holds a run and nothing was said about it, or the run is another one.
        """
        self.folder = folder
        for place in (folder, folder / "state"):
            make_writable(place)
        found = sorted((folder / "state").glob("*.pt"), reverse=True)
        if found and not resume:
            raise ConfigError(
                f"{folder}: holds a training run\n  Say --resume to go on with it, or give another folder."
            )
        for path in found:
            try:
                self.stored = torch.load(path, map_location="cpu", weights_only=True)
                break
            except Exception:  # noqa: BLE001 (damaged bytes can make torch's reader raise anything)
                log.warning("%s: damaged; the one before is taken", path)
        if found and not self.stored:
            raise ConfigError(f"{folder}: no state there can be read\n  Begin anew in another folder.")
        if found:
            self._check(folder)

    def resume(self, device: torch.device, scaler: Any) -> None:
        """Follow the network to its device, and become the state that ``open`` found, if any."""
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
        self.best, self.origin = self.stored["best"], self.stored.get("origin", "")
        log.info("resumed at step %d", self.step)
        self.stored = {}

    def advance(self, epoch: int, batch: int) -> None:
        """Count a step; the next begins at this place of the stream."""
        for average, rate in zip(self.averages, self.config.ema, strict=True):
            self._follow(average, rate)
        self.step, self.epoch, self.batch = self.step + 1, epoch, batch

    def check(self) -> None:
        """Refuse a network that is no longer made of numbers, before it is saved.

        Raises:
            InpaintingError: when a parameter is not finite.
        """
        if not all(torch.isfinite(parameter).all() for parameter in self.network.parameters()):
            raise InpaintingError(
                f"the network is not finite at step {self.step}\n"
                "  The last state is from before. Lower lr, set clip, or take bf16 for fp16."
            )

    def save(self, scaler: Any) -> None:
        """Write the state whole or not at all, and keep the last few."""
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
        if self.best == float("-inf"):  # nothing validated yet: the latest is the best that is known
            self._write_weights()

    def keep_the_best(self, score: float) -> None:
        """Write the moving average as the weights to use if it scores higher than all before."""
        if score > self.best:
            self.best = score
            self._write_weights()
            log.info("step %d scores best so far: %s", self.step, self.weights_path)

    @torch.no_grad()
    def _follow(self, average: AveragedModel, rate: float) -> None:
        """Take the network into an average; its own ``update_parameters`` would wait for the GPU."""
        limit = (1 + self.step) / (10 + self.step) if self.config.ema_warmup else 1.0
        mix = get_ema_multi_avg_fn(min(rate, limit) if self.step else 0.0)  # the first step is copied
        mix(list(average.module.parameters()), list(self.network.parameters()), average.n_averaged)
        average.n_averaged += 1

    def _write_weights(self) -> None:
        with atomic_write(self.weights_path) as unfinished:
            export(self.averages[0].module.state_dict(), self.config, self.step, unfinished, origin=self.origin)

    def _check(self, path: Path) -> None:
        ours = self.config.model_dump(mode="json") | {"fold": self.fold, "data": self.data}
        begun_with = TrainConfig.model_validate_json(self.stored["config"])  # what it does not name is at its default
        theirs = begun_with.model_dump(mode="json") | {name: self.stored[name] for name in ("fold", "data")}
        if differing := sorted(name for name in ours if name not in FREE and ours[name] != theirs.get(name)):
            raise ConfigError(
                f"{path}: the run there has another {', '.join(differing)}\n"
                "  Resume with the recipe, fold and data that it began with, or give another folder."
            )


def export(weights: dict[str, torch.Tensor], config: TrainConfig, step: int, path: Path, *, origin: str = "") -> None:
    """Write weights for inference, with the recipe, the step and the SHA-256 of the first weights in the metadata."""
    notes = {"training": config.model_dump(mode="json", exclude={"unet", "diffusion"}), "step": step}
    notes |= {"initial_weights": origin} if origin else {}
    checkpoint.save(path, weights, unet=config.unet, diffusion=config.diffusion, ema=True, notes=notes)


def read(path: Path) -> tuple[dict[str, Any], TrainConfig, dict[float, dict[str, torch.Tensor]]]:
    """Return what a state holds, its recipe, and the parameters of every moving average by its rate.

    Args:
        path: a file of a run's ``state`` folder, or the run's own folder for the newest.

    Raises:
        ConfigError: when the file is no state of a training run.
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
    """Write what a state holds for others: ours, and guided-diffusion's own files.

    Args:
        path: a file of a run's ``state`` folder, or the run's own folder for the newest.
        folder: receives ``weights-{step}.safetensors``, and in float32 ``savedmodel{step}.pt`` and, for every moving
            average, ``emasavedmodel_{rate}_{step}.pt``.

    Raises:
        ConfigError: when the file is no state of a training run.
    """
    stored, config, averages = read(path)
    step = stored["step"]
    make_writable(folder)
    if config.diffusion != DiffusionConfig():
        log.warning("a .pt has no room for %s: infer needs the .safetensors", config.diffusion)
    ours = folder / f"weights-{step:06d}.safetensors"
    export(averages[config.ema[0]], config, step, ours, origin=stored.get("origin", ""))
    written = {folder / f"savedmodel{step:06d}.pt": stored["network"]}
    for rate, weights in averages.items():
        written[folder / f"emasavedmodel_{rate}_{step:06d}.pt"] = weights
    for target, weights in written.items():
        torch.save(weights, target)
    return [ours, *written]
