"""The training loop (paper §3.2): on a CPU, one GPU, or several processes started by torchrun.

Shapes: N windows in one process's part of a batch.
"""

from __future__ import annotations

import logging
import signal
import time
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from brats_inpainting import consistency, container
from brats_inpainting.config import TrainConfig
from brats_inpainting.data import cache, dataset, folds
from brats_inpainting.data.augment import Item, augment
from brats_inpainting.data.cache import CachedScan, TrainingCase
from brats_inpainting.errors import ConfigError, InpaintingError
from brats_inpainting.journal import Journal
from brats_inpainting.loss import Terms
from brats_inpainting.state import State
from brats_inpainting.validate import Validation

if TYPE_CHECKING:
    from accelerate import Accelerator

log = logging.getLogger(__name__)


TIMEOUT = timedelta(hours=12)  # other processes wait this long while the main one prepares scans or validates


def train(
    data_path: Path,
    output_path: Path,
    config: TrainConfig,
    *,
    fold: int = 0,
    resume: bool = False,
    cache_path: Path | None = None,
    validation_path: Path | None = None,
    initial_weights: Path | None = None,
    minutes: float | None = None,
) -> Path:
    """Train until ``config.max_steps``.

    Scripts must call this under ``if __name__ == "__main__"``, because scans are prepared in spawned processes.

    Args:
        data_path: the training folder of BraTS Local Synthesis: complete scans ``*-t1n.nii.gz`` with their masks.
        output_path: receives weights.safetensors (the moving average with the best validation score, or the latest
            without validation), state/ (checkpoints), metrics.jsonl, folds.json, pictures and curves.
        config: network, diffusion and recipe.
        fold: number of the fold whose subjects are held out for validation.
        resume: continue from the last state in ``output_path``, on a CPU bit-identical to an uninterrupted run.
        cache_path: folder of the prepared scans; inside ``output_path`` if not given.
        validation_path: complete cases for validation, instead of a fold; then all of ``data_path`` is trained on.
        initial_weights: weights file for the recipe's network and diffusion; random if not given. The previous slice's
            channel may be missing in it. The teacher of a consistency model.
        minutes: write the state and stop after this time.

    Returns:
        The path of weights.safetensors.

    Raises:
        ConfigError: when recipe or data are invalid, or do not match an earlier run in ``output_path``.
        InpaintingError: when the loss is not finite; the last state was saved before that.
        SystemExit: 128 + signal number after SIGTERM or Ctrl-C; the state is saved first.
    """
    accelerator = _accelerator(config)
    files = cache.find(data_path)
    held = folds.split(files, held_out=0 if validation_path else config.held_out, seed=config.seed)
    state = State.start(config, fold=fold, data=cache.data_hash(files), initial=initial_weights)
    stop = _Stop(minutes)
    with accelerator.main_process_first():
        state.open(output_path, resume=resume)
        objective = consistency.objective(state, initial_weights, accelerator.device)
        training, validating = _split(files, held[fold], validation_path)
        scans = cache.prepare(training, cache_path or output_path / "cache")
    network, optimiser = accelerator.prepare(
        torch.compile(state.network) if config.compile else state.network, state.optimiser
    )
    state.resume(accelerator.device, accelerator.scaler)
    callbacks = None
    if accelerator.is_main_process:
        folds.write(held, output_path / "folds.json", seed=config.seed)
        callbacks = _Callbacks.of(state, validating, accelerator.scaler)

    losses = _Losses(scans, config)
    rank, world = accelerator.process_index, accelerator.num_processes
    stream = dataset.batches(scans, config, epoch=state.epoch, batch=state.batch, rank=rank, world=world)
    stop.listen()
    log.info("training on %s, %d process(es), %d scans", accelerator.device, world, len(scans))
    for epoch, batch, parts in islice(stream, max(0, config.max_steps - state.step)):
        _set_rate(optimiser, _learning_rate(config, state.step))
        for part in parts:
            item = part.to(accelerator.device)
            with accelerator.accumulate(network):  # the optimiser steps after the last part
                loss = objective(network, augment(item, config.augmentation))
                accelerator.backward(loss.total_N.mean())
                _clip(accelerator, network, config)
                optimiser.step()
                optimiser.zero_grad()
            losses.add(item, loss)
        state.advance(epoch, batch)
        last = stop.requested(accelerator) or state.step == config.max_steps
        if last or _due(state.step, config):
            figures = losses.figures(accelerator, state.step)  # raises before a non-finite state is saved
            state.check()
            if callbacks:
                callbacks.run(figures, last=last)
        if last:
            break
    if callbacks:
        callbacks.journal.close()
    accelerator.end_training()
    stop.finish(state)
    return state.weights_path


def _split(
    files: list[TrainingCase], held_out: list[str], validation_path: Path | None
) -> tuple[list[TrainingCase], list[TrainingCase]]:
    """Return the cases for training and those for validation; no subject is in both."""
    training = [case for case in files if case.subject not in held_out]
    if not validation_path:
        return training, [case for case in files if case.subject in held_out]
    validating = cache.find(validation_path)
    if both := {case.subject for case in training} & {case.subject for case in validating}:
        raise ConfigError(
            f"{', '.join(sorted(both))}: in training and validation data\n  Remove it from one of the folders."
        )
    return training, validating


def _accelerator(config: TrainConfig) -> Accelerator:
    try:
        from accelerate import Accelerator, InitProcessGroupKwargs
    except ImportError as error:
        raise container.missing("training needs accelerate", "train") from error
    torch.backends.cudnn.benchmark = config.unet.dims == 3  # all windows have one shape: autotune kernels
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision=_precision(config).replace("fp32", "no"),
        gradient_accumulation_steps=config.accumulate,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=TIMEOUT)],
    )
    if config.batch_size % (accelerator.num_processes * config.accumulate):
        shares = f"{accelerator.num_processes} processes in {config.accumulate} parts"
        raise ConfigError(f"batch_size {config.batch_size} cannot be divided evenly among {shares}\n  Change either.")
    return accelerator


def _precision(config: TrainConfig) -> str:
    """Return the recipe's precision; on a CPU, float32 instead of fp16, and of bf16 if the CPU only emulates it."""
    if config.precision == "fp32" or torch.cuda.is_available():
        return config.precision
    emulated = torch.backends.cpu.get_cpu_capability() in ("AVX2", "NO AVX")  # bf16 is seven times slower there
    if config.precision == "fp16" or emulated:
        log.warning("this CPU has no %s, training in float32", config.precision)
        return "fp32"
    return config.precision


def _learning_rate(config: TrainConfig, step: int) -> float:
    """Return the rate of a step: linear warm-up, constant, linear decay at the end."""
    return config.lr * min(1, (step + 1) / config.warmup, (config.max_steps - step) / config.decay)


def _set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = rate


def _clip(accelerator: Accelerator, network: torch.nn.Module, config: TrainConfig) -> None:
    if config.clip and accelerator.sync_gradients:
        accelerator.clip_grad_norm_(network.parameters(), config.clip)


def _due(step: int, config: TrainConfig) -> bool:
    return any(step % every == 0 for every in (config.report_every, config.save_every, config.validate_every))


@dataclass
class _Callbacks:
    """Reporting, validation and checkpoints, in the main process only."""

    state: State
    scaler: Any
    journal: Journal
    validation: Validation | None

    @classmethod
    def of(cls, state: State, held: list[TrainingCase], scaler: Any) -> _Callbacks:
        """Open the journal at the state's step, and choose the validation cases."""
        return cls(state, scaler, Journal(state.folder, after=state.step), Validation.of(held, state.config))

    def run(self, figures: dict[str, float], *, last: bool) -> None:
        """Report, and validate and save if due after this step."""
        state, config = self.state, self.state.config
        self.journal.figures(state.step, figures, lr=_learning_rate(config, state.step - 1), config=config)
        if self.validation and (state.step % config.validate_every == 0 or state.step == config.max_steps):
            state.save_if_best(self.journal.scores(state.step, self.validation.run(state, state.folder)))
        if last or state.step % config.save_every == 0:
            state.save(self.scaler)


@dataclass
class _Losses:
    """Losses of the windows since the last report, read only then to avoid synchronising with the GPU."""

    scans: list[CachedScan]
    config: TrainConfig
    rows: list[Tensor] = field(default_factory=list)

    def add(self, item: Item, loss: Terms) -> None:
        """Store timestep, loss terms, scan and slice of each window."""
        columns = (item.t[:, None], *(term_N[:, None] for term_N in loss), item.place_2)
        self.rows.append(torch.cat([column.detach().double() for column in columns], dim=1))

    def figures(self, accelerator: Accelerator, step: int) -> dict[str, float]:
        """Return the mean losses over all processes, and the squared error by quartile of the timestep.

        Raises:
            InpaintingError: when a loss is not finite; names the windows.
        """
        rows = accelerator.gather(torch.cat(self.rows)).cpu()
        self.rows.clear()
        t, mse, vb, ssim, scan, z = rows.T
        if (bad := ~torch.isfinite(mse + vb + ssim)).any():
            where = {f"{self.scans[int(i)].id} slice {int(k)}" for i, k in zip(scan[bad], z[bad], strict=True)}
            raise InpaintingError(
                f"the loss is not finite at or before step {step}: {', '.join(sorted(where)[:8])}\n"
                "  The last state was saved before that. Check these scans; lower lr, set clip, or use bf16 for fp16."
            )
        quarter = (4 * t / self.config.diffusion.steps).long()
        by_quarter = {f"mse_q{q + 1}": float(mse[quarter == q].mean()) for q in range(4) if (quarter == q).any()}
        parts = {"mse": mse, "vb": vb} | ({"ssim_term": ssim} if self.config.ssim else {})
        means = {name: float(term.mean()) for name, term in parts.items()}
        return {"loss": sum(means.values())} | means | by_quarter


class _Stop:
    """Stops all processes after the current step, on SIGTERM, Ctrl-C or when the time is up."""

    def __init__(self, minutes: float | None) -> None:
        self.number = 0
        self.end = float("inf") if minutes is None else time.monotonic() + 60 * minutes
        self.handlers: dict[int, Any] = {}

    def listen(self) -> None:
        """Install the signal handlers; until then, a signal ends the process immediately."""
        self.handlers = {number: signal.signal(number, self._receive) for number in (signal.SIGINT, signal.SIGTERM)}

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        log.warning("signal received: finishing the step, then saving the state")
        self.number = number

    def requested(self, accelerator: Accelerator) -> bool:
        """Return whether any process has received a signal or has no time left."""
        over = int(time.monotonic() > self.end)
        if accelerator.num_processes > 1:
            flags_2 = torch.tensor([[self.number, over]], device=accelerator.device)
            self.number, over = (int(flag) for flag in accelerator.gather(flags_2).amax(dim=0))
        return self.number + over > 0

    def finish(self, state: State) -> None:
        """Log whether the run is complete, restore the signal handlers, and exit if a signal was received."""
        left = state.config.max_steps - state.step
        log.info("step %d: %s", state.step, f"stopped, {left} steps left; use --resume" if left > 0 else "finished")
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        if self.number:
            raise SystemExit(128 + self.number)
