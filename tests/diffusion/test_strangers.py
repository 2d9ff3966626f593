"""Weights from strangers: nothing runs, no memory is taken for a lie, and every refusal says what is wrong."""

import io
import json
import struct
import subprocess
import sys
import zipfile
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from brats_inpainting.config import DiffusionConfig
from brats_inpainting.diffusion import checkpoint

from ..conftest import TINY, tiny_network
from .test_checkpoint import refused


@pytest.fixture(scope="module")
def state():
    return tiny_network().state_dict()


def metadata(**settings):
    """Save the network's tensors with settings that lie."""
    stored = {"unet": TINY.model_dump(), "diffusion": DiffusionConfig().model_dump()} | settings
    return {checkpoint.METADATA: json.dumps(stored)}


def with_header(path, header, data=b""):
    """Write a .safetensors whose header says what it likes."""
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]},
        {"dtype": "F32", "shape": [4], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [4], "data_offsets": [16, 0]},
        {"dtype": "F32", "shape": [2**63, 2**63], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]},
        {"dtype": "X99", "shape": [4], "data_offsets": [0, 16]},
        {},
    ],
    ids=["terabytes", "wrong length", "backwards", "overflow", "negative", "no such type", "nothing"],
)
def test_a_safetensors_header_that_lies_is_refused(tmp_path, entry):
    with_header(tmp_path / "w.safetensors", {"time_embed.0.weight": entry}, bytes(16))
    assert "truncated or not a .safetensors file" in refused(tmp_path / "w.safetensors")


def test_a_safetensors_header_longer_than_the_file_is_refused(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", 2**62) + b"{}")
    assert "truncated or not a .safetensors file" in refused(tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    "settings",
    [
        {"unet": TINY.model_dump() | {"width": 32 * 10**9}},
        {"unet": TINY.model_dump() | {"blocks": 10**9}},
        {"unet": TINY.model_dump() | {"multipliers": [1] * 10**5}},
        {"diffusion": {"steps": 10**12}},
        {"diffusion": {"image_range": [0, float("inf")]}},
        {"diffusion": {"image_range": [1, 1]}},
        {"diffusion": {"clamp": [float("nan"), 1]}},
    ],
    ids=["width", "blocks", "levels", "steps", "infinite range", "empty range", "clamp"],
)
def test_settings_that_ask_for_more_than_any_machine_has_are_refused(state, tmp_path, settings):
    save_file(state, tmp_path / "w.safetensors", metadata=metadata(**settings))
    assert "the settings stored with them" in refused(tmp_path / "w.safetensors")


@contextmanager
def grown():
    """Give a list that receives by how many kilobytes this process's memory rose at the most."""
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far

    def told(name):
        return int(Path("/proc/self/status").read_text().partition(f"{name}:")[2].split()[0])

    before, kilobytes = told("VmRSS"), []
    yield kilobytes
    kilobytes.append(told("VmHWM") - before)


def test_a_huge_network_that_the_file_does_not_hold_takes_no_memory(state, tmp_path):
    lie = TINY.model_dump() | {"width": 4096, "multipliers": [16] * 8}  # 4 TB of parameters
    save_file(state, tmp_path / "w.safetensors", metadata=metadata(unet=lie))
    with grown() as kilobytes:
        message = refused(tmp_path / "w.safetensors")
    assert "wrong architecture" in message
    assert "time_embed.0.weight is (128, 32), not (16384, 4096)" in message
    assert kilobytes[0] < 200_000  # the names and shapes of its modules take some of it


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_counted_and_the_first_is_named(state, tmp_path, suffix, value):
    spoiled = {name: tensor.clone() for name, tensor in state.items()}
    spoiled["out.2.bias"][0] = value
    spoiled["input_blocks.0.0.weight"][0] = value
    path = tmp_path / f"model.{suffix}"
    torch.save(spoiled, path) if suffix == "pt" else save_file(spoiled, path, metadata=metadata())
    words = f"NaN or infinity in 2 of {len(state)} tensors, beginning with input_blocks.0.0.weight"
    assert words in refused(path)


def test_weights_that_overflow_in_half_precision_are_refused(state, tmp_path):
    large = {name: tensor * 1e6 for name, tensor in state.items()}
    checkpoint.save(
        tmp_path / "w.safetensors", large, unet=TINY, diffusion=DiffusionConfig(), ema=True, notes={}
    )  # in float16, which ends at 65504
    assert "NaN or infinity" in refused(tmp_path / "w.safetensors")


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float8_e4m3fn])
def test_weights_of_another_kind_of_number_are_refused(state, tmp_path, dtype):
    save_file({name: tensor.to(dtype) for name, tensor in state.items()}, tmp_path / "w.safetensors")
    assert f"holds {dtype}, not floats" in refused(tmp_path / "w.safetensors")


def test_a_zip_bomb_is_refused_before_it_unpacks(state, tmp_path):
    """PyTorch reads compressed archives, though it never writes them."""
    plain = io.BytesIO()
    torch.save({**state, "bomb": torch.zeros(2**26)}, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(tmp_path / "model.pt", "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    assert (tmp_path / "model.pt").stat().st_size < 2_000_000
    assert len(torch.load(tmp_path / "model.pt", weights_only=True)["bomb"]) == 2**26  # the attack is a real one
    assert "unpack to 269," in refused(tmp_path / "model.pt")


def test_a_storage_that_promises_terabytes_is_refused_in_little_memory(tmp_path):
    """The old format says how long a storage is before it comes."""
    tensor = torch.zeros(4)
    torch.save({"time_embed.0.weight": tensor}, tmp_path / "model.pt", _use_new_zipfile_serialization=False)
    raw = (tmp_path / "model.pt").read_bytes()
    lie = raw.replace(b"K\x04N", b"\x8a\x06\x00\x00\x00\x00\x00\x01N")  # LONG1: 2**40 elements instead of 4
    assert lie != raw
    (tmp_path / "model.pt").write_bytes(lie)
    with grown() as kilobytes:
        assert "truncated or not a PyTorch file" in refused(tmp_path / "model.pt")
    assert kilobytes[0] < 100_000


def test_a_view_that_repeats_one_number_is_no_network(tmp_path):
    wide = torch.zeros(1).expand(2**20, 2**20)  # stored as a single number, and as terabytes if copied
    torch.save({"time_embed.0.weight": wide}, tmp_path / "model.pt")
    refused(tmp_path / "model.pt")


def test_the_command_line_runs_no_code_from_a_file_and_says_so(state, tmp_path):
    """From end to end, in a process of its own, with a canary that the pickle would leave."""
    from .test_checkpoint import Malicious

    (tmp_path / "data").mkdir()
    canary = tmp_path / "canary"
    torch.save({**state, "evil": Malicious(canary)}, tmp_path / "model.pt")
    files = [tmp_path / "image.nii", tmp_path / "mask.nii"]
    for path in files:
        path.touch()
    pair = ["--image", files[0], "--mask", files[1], "--output", tmp_path / "out" / "filled.nii.gz"]
    command = [sys.executable, "-m", "brats_inpainting", "infer", *pair, "--weights", tmp_path / "model.pt"]
    told = subprocess.run([str(arg) for arg in command], capture_output=True, text=True, check=False)
    assert told.returncode == 2
    assert f"{tmp_path / 'model.pt'}: holds more than tensors, and only tensors are unpickled" in told.stderr
    assert not canary.exists()
    assert not (tmp_path / "out").exists()
