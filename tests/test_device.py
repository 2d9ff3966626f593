"""The choice of a device. No GPU is needed: what torch would say of one is put into its mouth."""

import logging
import warnings

import pytest
import torch

from brats_inpainting import device
from brats_inpainting.config import UNetConfig
from brats_inpainting.errors import ConfigError
from brats_inpainting.plan import Plan, defaults

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def everything_is_heard(caplog):
    caplog.set_level(logging.INFO)


@pytest.fixture
def machine(monkeypatch):
    """Stand in for a GPU, its driver, and a build of torch with or without code for it."""

    def pretend(*, available=True, capability=(9, 0), built=("sm_80", "sm_90"), cuda="13.0"):
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: int(available))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Some GPU")
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: list(built))

    return pretend


def test_auto_takes_the_gpu_and_names_it(machine, caplog):
    machine()
    assert device.choose_device("auto") == torch.device("cuda")
    assert "on cuda, Some GPU" in caplog.text


def test_auto_without_a_gpu_says_so_without_a_warning(machine, caplog):
    machine(available=False)
    assert device.choose_device("auto") == CPU
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [("INFO", "on the CPU: no NVIDIA GPU found")]


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "mps"])
def test_a_gpu_asked_for_that_is_not_there_is_an_error_unless_the_cpu_may_replace_it(name, machine, caplog):
    machine(available=False)
    with pytest.raises(ConfigError, match=f"device {name}: no .* found\n  Use --device cpu, or leave --device out"):
        device.choose_device(name)
    assert device.choose_device(name, fallback="cpu") == CPU
    assert [r.levelname for r in caplog.records] == ["WARNING"]


def test_a_gpu_number_that_is_not_there_is_an_error_that_names_the_last_one(machine):
    machine()
    with pytest.raises(ConfigError, match="no cuda:3 found, the last GPU is cuda:0"):
        device.choose_device("cuda:3")


def test_a_gpu_without_code_in_this_build_gives_the_cpu_and_says_which_there_is(machine, caplog):
    machine(capability=(6, 1))
    assert device.choose_device("auto") == CPU
    assert "no code for Some GPU (sm_61)" in caplog.text
    assert "built for sm_80, sm_90" in caplog.text
    assert caplog.records[0].levelname == "WARNING"


def test_a_build_without_cuda_says_so(machine, caplog):
    machine(cuda=None)
    assert device.choose_device("auto") == CPU
    assert "is built without CUDA" in caplog.text


def test_an_old_driver_is_named_in_the_words_of_torch(machine, monkeypatch, caplog):
    machine()

    def too_old():
        warnings.warn("The NVIDIA driver on your system is too old\nmore", stacklevel=2)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", too_old)
    assert device.choose_device("auto") == CPU
    assert caplog.messages == ["on the CPU: The NVIDIA driver on your system is too old"]


def test_a_name_without_meaning_is_refused():
    with pytest.raises(ConfigError, match="no device named 'gpu'"):
        device.choose_device("gpu")


@pytest.mark.parametrize(
    ("capability", "architectures", "runs"),
    [
        ((8, 6), ["sm_80"], True),  # same major version, later minor
        ((8, 0), ["sm_86"], False),
        ((9, 0), ["sm_80", "sm_86"], False),
        ((12, 0), ["sm_90", "compute_90"], True),  # translated by the driver
        ((12, 0), ["sm_90a", "sm_100"], False),
        ((12, 1), ["sm_120"], True),
        ((6, 1), ["sm_75", "compute_75"], False),
    ],
)
def test_a_build_runs_on_what_it_holds_code_for(capability, architectures, runs):
    assert device.runs_on(capability, architectures) is runs


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16")])
def test_a_gpu_works_in_the_precision_that_it_is_made_for(machine, capability, expected):
    machine(capability=capability)
    assert device.best_precision(torch.device("cuda:0")) == expected
    assert device.best_precision(CPU) == "fp32"


@pytest.mark.parametrize(
    ("capability", "width", "expected"),
    [((8, 0), 64, (64, "bf16")), ((9, 0), 96, (32, "bf16")), ((7, 5), 32, (32, "fp16"))],
)
def test_a_narrow_network_takes_larger_batches_on_a_large_gpu(machine, capability, width, expected):
    machine(capability=capability)
    assert defaults(torch.device("cuda:0"), UNetConfig(width=width)) == expected
    assert defaults(CPU, UNetConfig(width=width)) == (4, "fp32")
    assert defaults(torch.device("mps"), UNetConfig(width=width)) == (8, "fp32")


def test_passes_are_replayed_on_an_nvidia_gpu_unless_asked_otherwise(machine):
    machine(capability=(9, 0))
    unet, gpu = UNetConfig(), torch.device("cuda:0")
    assert Plan.make(unet, gpu).replay
    assert not Plan.make(unet, gpu, replay=False).replay
    assert not Plan.make(unet, CPU).replay
