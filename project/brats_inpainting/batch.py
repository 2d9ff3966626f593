"""One batch of windows from noise to tissue.

Shapes: N windows of a batch, C channels, V the axes of a window (H W of a patch, X Y Z of a box).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from math import prod

import numpy as np
import torch
from torch import Tensor

from brats_inpainting import memory
from brats_inpainting.concurrent import OnPass
from brats_inpainting.config import SamplingConfig
from brats_inpainting.data.windows import Stack, Task
from brats_inpainting.device import autocast
from brats_inpainting.diffusion import noise, samplers
from brats_inpainting.diffusion.checkpoint import Weights
from brats_inpainting.diffusion.convolution import MEMORY_FORMAT
from brats_inpainting.diffusion.process import Denoiser, Network, Prediction, Schedule
from brats_inpainting.diffusion.replay import Replay
from brats_inpainting.errors import InpaintingError
from brats_inpainting.plan import Plan
from brats_inpainting.progress import duration
from brats_inpainting.runtime import return_memory

log = logging.getLogger(__name__)

MANY_PASSES = 25  # of a window


@torch.inference_mode()
def sample(
    tasks: Sequence[Task],
    weights: Weights,
    sampling: SamplingConfig,
    plan: Plan,
    *,
    network: Network,
    seed: int,
    on_pass: OnPass,
) -> np.ndarray:
    """Sample windows of one shape, at most ``plan.batch_size`` of them, N × 1 × V in [0, 1] but not clipped.

    The batch is padded to ``plan.batch_size`` windows, so that the shape of the work, and with it the last bits of a
    window, do not depend on how many there are.

    Args:
        tasks: the windows.
        weights: the network and what it predicts.
        sampling: how it is sampled.
        plan: where, and in which precision.
        network: its pass, as ``network_pass`` returns it.
        seed: of the noise.
        on_pass: called before each network pass with the number of windows.
    """
    unet, (low, high) = weights.network.config, weights.diffusion.image_range
    if unet.dims == 3 and plan.device.type == "cpu" and memory.too_little_for(unet, prod(tasks[0].window.shape)):
        return_memory()
    condition_NCV = _padded([torch.from_numpy(task.condition_CV(position=unet.position)) for task in tasks], plan)
    images = [0, -1] if weights.diffusion.context == "previous" else [0]  # the other channels have ranges of their own
    condition_NCV[:, images] = low + (high - low) * condition_NCV[:, images]
    schedule = Schedule.of(weights.diffusion)

    def draw(step: int) -> Tensor:
        drawn_N1V = _padded([_noise(task, seed=seed, step=step, mode=sampling.noise) for task in tasks], plan)
        return _on_device(drawn_N1V, plan.device)

    denoise = Denoiser(
        network,
        _on_device(condition_NCV.contiguous(memory_format=MEMORY_FORMAT[unet.dims]), plan.device),
        schedule,
        weights.diffusion,
    )

    def reported(x_N1V: Tensor, t: int) -> Prediction:
        on_pass(len(tasks))
        return denoise(x_N1V, t)

    x0_N1V = samplers.SAMPLERS[sampling.sampler](
        reported,
        draw(0),
        schedule.timesteps(sampling.steps, spacing=sampling.timesteps),
        schedule,
        noise=lambda k: draw(k + 1),
    )
    return ((x0_N1V[: len(tasks)] - low) / (high - low)).float().cpu().numpy()


def within_memory(sample: Callable[..., np.ndarray], tasks: Sequence[Task], plan: Plan) -> tuple[np.ndarray, int]:
    """Sample windows, and halve the batch size as long as memory runs out.

    Args:
        sample: ``sample(tasks, plan=plan)``, as the function above.
        tasks: the windows.
        plan: has the batch size to begin with.

    Returns:
        The samples, N × 1 × V, and the batch size that fitted.

    Raises:
        InpaintingError: when there is not enough memory for a single window.
    """
    size = plan.batch_size
    if not tasks:
        return np.empty((0, 1)), size
    while True:
        try:
            parts = [tasks[start : start + size] for start in range(0, len(tasks), size)]
            return np.concatenate([sample(part, plan=plan.at_most(size)) for part in parts]), size
        except RuntimeError as error:
            if not isinstance(error, torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
                raise
            if size == 1:
                raise InpaintingError(
                    f"not enough memory on {plan.device} for a single window\n  Use --device cpu, or smaller weights."
                ) from error
        log.warning("memory ran out with %d windows at a time; continuing with %d", size, size // 2)
        size //= 2


@torch.inference_mode()
def log_estimate(stack: Stack, weights: Weights, sampling: SamplingConfig, plan: Plan) -> None:
    """Log how long a scan will take if it takes many passes on a CPU; one batch is timed."""
    if sampling.passes < MANY_PASSES or not stack.windows or plan.device.type != "cpu":
        return
    x_NCV = torch.zeros(plan.batch_size, weights.network.config.in_channels, *stack.windows[0].shape)
    started = time.perf_counter()
    network_pass(weights.network, plan)(x_NCV, torch.zeros(1))
    seconds = (time.perf_counter() - started) * sampling.passes * -(-stack.missing // plan.batch_size)
    log.info(
        "%s takes %s network passes, on this CPU about %s; fewer --steps or another --preset are faster",
        *(stack.scan.id, f"{stack.missing * sampling.passes:,}", duration(seconds)),
    )


def network_pass(network: Callable[[Tensor, Tensor], Tensor], plan: Plan) -> Network:
    """Return the network as a function of x_NCV and one timestep; a window's bits do not depend on its batch.

    Where the threads of a CPU would divide the windows of a batch unevenly, the order of sums would change; one window
    at a time is passed there. On a GPU, passes of one shape are replayed if the plan says so.
    """

    def run(x_NCV: Tensor, t_1: Tensor) -> Tensor:
        one_by_one = plan.device.type == "cpu" and len(x_NCV) % torch.get_num_threads() > 0
        with torch.cuda.device_of(x_NCV), autocast(plan.device.type, plan.precision):  # where Triton launches
            return torch.cat([network(x, t_1) for x in x_NCV.split(1 if one_by_one else len(x_NCV))])

    return Replay(run) if plan.replay else run


def _noise(task: Task, *, seed: int, step: int, mode: str) -> Tensor:
    """Draw the noise of whole slices of the frame, and cut the window: 1 × V."""
    z, rows, columns = task.window.place
    size = task.stack.scan.frame.size

    def draw(z: int) -> Tensor:
        return noise.draw(size, seed=seed, z=z, sample=task.sample, step=step, mode=mode)[rows, columns]

    if isinstance(z, int):
        return draw(z)[None]
    return torch.stack([draw(index) for index in range(z.start, z.stop)], dim=-1)[None]


def _padded(rows: list[Tensor], plan: Plan) -> Tensor:
    """Stack rows, and add zeros up to the batch size."""
    empty = torch.zeros_like(rows[0])
    return torch.stack([*rows, *[empty] * (plan.batch_size - len(rows))])


def _on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to the device; to an NVIDIA GPU from pinned memory, without waiting."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
