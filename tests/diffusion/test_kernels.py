"""The kernels for a GPU against PyTorch: on a GPU if there is one, else in Triton's interpreter on the CPU."""

import importlib

import pytest
import torch
import torch.nn.functional as F

from brats_inpainting.config import UNetConfig
from brats_inpainting.diffusion import convolution, fused
from brats_inpainting.diffusion.replay import Replay
from brats_inpainting.diffusion.unet import UNet

from ..conftest import TINY, TINY_3D

pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 4e-3}


@pytest.fixture(scope="module")
def kernels():
    return importlib.import_module("brats_inpainting.diffusion.kernels")


def random(*shape, dtype, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def distance(ours, exact):
    return float((ours.double() - exact).detach().norm() / exact.detach().norm())


def case(shape, *, shifts=0, dtype=torch.float32):
    """Features with a mean of 5 and a standard deviation of 2, weight, bias and shift."""
    exact = dtype if dtype == torch.float64 else torch.float32
    x = (5 + 2 * random(*shape, dtype=torch.float64)).to(dtype)
    rest = [random(shape[1], dtype=exact, seed=seed) for seed in (1, 2)]
    shift = [random(shifts, shape[1], dtype=exact, seed=3)] if shifts else [None]
    return [x, *rest, *shift]


def plain(x, weight, bias, shift, *, groups, eps, silu):
    if shift is not None:
        x = x + shift.reshape(*shift.shape, *[1] * (x.ndim - 2))
    y = F.group_norm(x, groups, weight, bias, eps)
    return F.silu(y) if silu else y


CASES = [
    ((2, 64, 15, 19), 8, 2, True, "last"),  # more positions than one block
    ((2, 64, 5, 7, 3), 16, 1, True, "last"),  # 3D, one shift for all windows
    ((1, 96, 5, 6), 32, 0, True, "contiguous"),  # three channels a group
    ((3, 35, 4, 3, 2), 7, 3, False, "strided"),  # five channels a group, more than one in a program
    ((1, 70, 6, 5), 10, 1, False, "strided"),  # more channels than a program holds
]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("shape", "groups", "shifts", "silu", "layout"), CASES)
def test_values_and_gradients_are_those_of_pytorch(kernels, shape, groups, shifts, silu, layout, dtype):
    given = case(shape, shifts=shifts, dtype=dtype)
    exact = [None if g is None else g.double().requires_grad_() for g in given]
    if layout == "last":
        given[0] = given[0].contiguous(memory_format=FORMATS[len(shape)])
    elif layout == "strided":
        given[0] = torch.cat([given[0]] * 2, dim=2)[:, :, : shape[2]]
    given = [None if g is None else g.requires_grad_() for g in given]
    settings = {"groups": groups, "eps": 1e-5, "silu": silu}
    ours, truth = kernels.group_norm(*given, **settings), plain(*exact, **settings)
    upstream = random(*shape, dtype=dtype, seed=4)
    gradients = torch.autograd.grad(ours, [g for g in given if g is not None], upstream)
    true = torch.autograd.grad(truth, [e for e in exact if e is not None], upstream.double())
    assert ours.dtype == dtype
    assert ours.is_contiguous(memory_format=FORMATS[len(shape)])
    for found, wanted in zip([ours, *gradients], [truth, *true], strict=True):
        assert distance(found, wanted) < TOLERANCE[dtype]


def test_gradients_pass_gradcheck(kernels):
    given = [g.requires_grad_() for g in case((2, 3, 2, 2), shifts=2, dtype=torch.float64)]

    def function(*given):
        return kernels.group_norm(*given, groups=1, eps=1e-5, silu=True)

    assert torch.autograd.gradcheck(function, given, fast_mode=True)


def test_a_mean_much_larger_than_the_deviation_costs_no_precision(kernels):
    x = 1000 + random(1, 4, 20, 20, dtype=torch.float64)
    ones = torch.ones(4, device=DEVICE)
    y = kernels.group_norm(x.float(), ones, 0 * ones, None, groups=2, eps=1e-5, silu=False)
    assert distance(y, F.group_norm(x.float().double(), 2)) < 1e-4


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_sum_of_residual_and_bias_is_pytorchs(kernels, dtype):
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    h, x = (random(2, 70, 9, 5, dtype=dtype, seed=seed).requires_grad_() for seed in (5, 6))
    bias = random(70, dtype=exact, seed=7).requires_grad_()
    upstream = random(2, 70, 9, 5, dtype=dtype, seed=8)
    ours = kernels.add(h, x, bias)
    truth = h.double() + x.double() + bias.double().reshape(-1, 1, 1)
    with torch.no_grad():
        in_place = h.clone(memory_format=torch.channels_last)
        assert kernels.add(in_place, x, bias).data_ptr() == in_place.data_ptr()
    assert distance(in_place, truth) < TOLERANCE[dtype]
    assert distance(ours, truth) < TOLERANCE[dtype]
    for found, wanted in zip(
        torch.autograd.grad(ours, (h, x, bias), upstream),
        torch.autograd.grad(truth, (h, x, bias), upstream.double()),
        strict=True,
    ):
        assert distance(found, wanted.double()) < TOLERANCE[dtype]


@pytest.mark.slow
@pytest.mark.parametrize("config", [TINY, TINY_3D], ids=["2D", "3D"])
def test_the_network_with_kernels_gives_its_values_and_gradients(kernels, config, monkeypatch):
    torch.manual_seed(0)
    network = UNet(UNetConfig.model_validate(config.model_dump())).to(DEVICE)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x, t = random(1, config.in_channels, *[8] * config.dims, dtype=torch.float32), torch.tensor([3], device=DEVICE)

    def run(found):
        monkeypatch.setattr(fused, "_kernels", lambda _: found)
        y = network(x, t)
        return [y, *torch.autograd.grad(y.square().sum(), list(network.parameters()))]

    for ours, plain in zip(run(kernels), run(None), strict=True):
        assert (ours - plain).norm() < 1e-4 * max(1, plain.norm())


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 2, 3, 4, 5)])
def test_doubled_features_are_those_of_the_nearest_neighbour(shape):
    x = random(*shape, dtype=torch.float32)
    assert torch.equal(convolution._doubled(x), F.interpolate(x, scale_factor=2, mode="nearest"))


@pytest.mark.skipif(DEVICE == "cuda", reason="recording works on a GPU")
def test_a_pass_that_cannot_be_recorded_runs_as_it_is(caplog):
    replay = Replay(lambda x, t: x + t)
    for shape in ((1, 2), (3, 2)):
        for t in range(5):
            assert torch.equal(replay(torch.ones(shape), torch.tensor([t])), torch.full(shape, 1.0 + t))
    assert caplog.text.count("passes are not replayed as a CUDA graph") == 2  # once for each shape


@pytest.mark.skipif(DEVICE == "cpu", reason="needs an NVIDIA GPU")
def test_a_replayed_pass_is_the_pass():
    torch.manual_seed(0)
    network = UNet(TINY).eval().to(DEVICE)
    replay = Replay(network)
    with torch.inference_mode():
        for seed in range(6):
            x = random(2, TINY.in_channels, *[32 if seed < 5 else 16] * 2, dtype=torch.float32, seed=seed)
            t = torch.tensor([100 * seed], device=DEVICE)
            assert torch.equal(replay(x, t), network(x, t))
