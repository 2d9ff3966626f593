"""One frozen ``Plan``: how a network works through windows on a device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import torch

from brats_inpainting import memory
from brats_inpainting.concurrent import threads_per_batch
from brats_inpainting.config import Precision, UNetConfig
from brats_inpainting.device import best_precision

NARROW = 64  # feature maps: a batch of so narrow a 2D network does not keep several CPU threads busy
BATCH = {  # windows per pass by the network's dimensions and the device; 32 slices are the paper's
    2: {"cuda": 32, "mps": 8, "cpu": 4},
    3: {"cuda": 1, "mps": 1, "cpu": 1},  # one box keeps a GPU busy; larger batches have not been measured
}


@dataclass(frozen=True)
class Plan:
    """How a network works through windows.

    Attributes:
        device: where the network is.
        precision: of the network's convolutions and matrix products; everything else is float32.
        batch_size: windows per network pass.
        concurrent: batches sampled at once, each with its share of torch's threads.
        replay: on a GPU, passes of one shape are recorded as a CUDA graph and replayed.
        most_voxels: a box of more voxels is filled in overlapping parts; ``None`` for no limit.
        threads: CPU threads.
    """

    device: torch.device
    precision: Precision = "fp32"
    batch_size: int = 1
    concurrent: int = 1
    replay: bool = False
    most_voxels: int | None = None
    threads: int = field(default_factory=torch.get_num_threads)

    @classmethod
    def make(
        cls,
        unet: UNetConfig,
        device: torch.device,
        *,
        batch_size: int | None = None,
        at_most: int | None = None,
        precision: Precision | Literal["auto"] = "auto",
        replay: bool = True,
        threads: int | None = None,
        limit: int | None = None,
    ) -> Plan:
        """Decide by network, device and free memory.

        Args:
            unet: the network.
            device: where it runs.
            batch_size: windows per network pass, if that is not to be decided here.
            at_most: the largest batch size that may be chosen.
            precision: ``auto`` is float32 on a CPU; on a GPU bfloat16, or float16 on older ones.
            replay: allow CUDA graphs on a GPU.
            threads: CPU threads that may be used; torch's own number if not given.
            limit: bytes of memory that may be used; what is free if not given.
        """
        most, exact = defaults(device, unet)
        most = min(most, at_most or most)
        slices_on_cpu = device.type == "cpu" and unet.dims == 2
        size = batch_size or (memory.batch_size(unet, most, limit) if slices_on_cpu else most)
        concurrent, most_voxels, threads = 1, None, threads or torch.get_num_threads()
        if unet.dims == 3:
            voxels = memory.most_voxels(unet, device, limit)
            most_voxels = voxels and voxels // size
        elif slices_on_cpu and unet.width <= NARROW:
            concurrent = memory.batches(unet, size, threads // threads_per_batch(threads), limit)
        exact = exact if precision == "auto" else precision
        return cls(device, exact, size, concurrent, replay and device.type == "cuda", most_voxels, threads)

    @classmethod
    def common(cls, plans: Sequence[Plan]) -> Plan:
        """Return the plan that fits all machines; device, precision and concurrency are the first one's."""
        voxels = [plan.most_voxels for plan in plans if plan.most_voxels]
        size = min(plan.batch_size for plan in plans)
        return replace(plans[0], batch_size=size, most_voxels=min(voxels, default=None))

    def at_most(self, batch_size: int) -> Plan:
        """Return the plan with no larger a batch size."""
        return replace(self, batch_size=min(self.batch_size, batch_size))

    def facts(self) -> dict[str, Any]:
        """Return the plan for the record of a run."""
        return asdict(self) | {"device": str(self.device)}

    def __str__(self) -> str:
        """Describe the plan in a few words."""
        at_once = f", {self.concurrent} batches at once" if self.concurrent > 1 else ""
        return f"{self.batch_size} windows at a time{at_once}, in {self.precision}"


def defaults(device: torch.device, unet: UNetConfig) -> tuple[int, Precision]:
    """Return the batch size and the precision of a network on a device, before memory is considered."""
    precision, most = best_precision(device), BATCH[unet.dims][device.type]
    narrow = precision == "bf16" and unet.dims == 2 and unet.width <= NARROW
    return 2 * most if narrow else most, precision
