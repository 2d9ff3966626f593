"""Which noise a window gets: that of its own slices, sample and step, wherever in a batch it is."""

import numpy as np
import pytest
import torch

from brats_inpainting.diffusion import noise

from .conftest import TINY, TINY_3D, inpainter, scan_of

SHAPE = (64, 64, 60)  # deep enough for boxes that do not begin at the first slice
DIMS = pytest.mark.parametrize("dims", [2, 3])


class Echo(torch.nn.Module):
    """A network whose x̂_0 is what it sees of x_t, or nothing; it keeps what it saw."""

    def __init__(self, dims, share=1):
        super().__init__()
        self.config, self.share, self.seen = {2: TINY, 3: TINY_3D}[dims], share, []

    def forward(self, x_NCV, _t_N):
        self.seen.append(x_NCV[:, 2:3].numpy())
        return self.share * x_NCV[:, 2:3]


def expected(task, *, step=0):
    """The draws of a window's slices, as they are defined."""
    z, rows, columns = task.window.place
    size, key = task.stack.scan.frame.size, {"sample": task.sample, "step": step, "mode": "independent"}
    indices = [z] if isinstance(z, int) else range(z.start, z.stop)
    draws = [noise.draw(size, seed=5, z=index, **key).numpy()[rows, columns] for index in indices]
    return draws[0] if isinstance(z, int) else np.stack(draws, axis=-1)


@DIMS
@pytest.mark.parametrize("batch_size", [1, 3, 5])
def test_a_window_starts_from_the_noise_of_its_slices_and_its_sample_at_any_place_in_a_batch(dims, batch_size):
    scans = [scan_of(0, "a", SHAPE, radius=0.1), scan_of(1, "b", SHAPE, centre=(0.5, 0.5, 0.6))]
    machine = inpainter(Echo(dims), batch_size=batch_size, steps=1, samples=3, noise="independent")
    stacks = list(machine.fill(scans, seed=5, keep=True))
    assert len(stacks) == 2
    for stack in stacks:
        assert len(stack.kept) == 3 * len(stack.windows)
        for task, sample_V in stack.kept:
            assert np.array_equal(sample_V, expected(task).clip(-1, 1))  # x̂_0 is clamped


@DIMS
def test_every_step_adds_a_draw_of_its_own(dims):
    network = Echo(dims, share=0)
    machine = inpainter(network, batch_size=1, sampler="ddpm", steps=3, samples=2, noise="independent")
    (stack,) = machine.fill([scan_of(0, "a", SHAPE, radius=0.05)], seed=5, keep=True)
    for number, (task, _) in enumerate(stack.kept):
        draws = np.stack([expected(task, step=step).ravel() for step in range(3)], axis=1)
        for k, seen in enumerate(network.seen[3 * number : 3 * number + 3]):
            shares, *_ = np.linalg.lstsq(draws, seen.ravel(), rcond=None)
            np.testing.assert_allclose(draws @ shares, seen.ravel(), atol=1e-4)  # float32
            assert [abs(share) > 1e-3 for share in shares[k:]] == [True] + [False] * (2 - k)
