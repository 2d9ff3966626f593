"""The weights on disk: what is recognised, what comes back, and what is refused in words."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from brats_inpainting.config import DiffusionConfig, UNetConfig
from brats_inpainting.diffusion import checkpoint
from brats_inpainting.diffusion.unet import UNet
from brats_inpainting.errors import CheckpointError

from ..golden import SMALL, network, rnd

ZIP, LEGACY = {}, {"_use_new_zipfile_serialization": False}  # PyTorch's format since 1.6, and the one before
BOTH_FORMATS = pytest.mark.parametrize("file_format", [ZIP, LEGACY], ids=["zip", "legacy"])


@pytest.fixture(scope="module")
def net():
    return network(SMALL)


@pytest.fixture
def saved(net, tmp_path):
    """The network's own .safetensors."""
    path = tmp_path / "small.safetensors"
    checkpoint.save(path, net.state_dict(), unet=SMALL, diffusion=DiffusionConfig(), ema=True, notes={})
    return path


def output(network):
    return network(rnd("x", (2, 3, 16, 16)), torch.tensor([7, 900]))


def refused(path, **settings):
    """The words with which a file is refused; they name it and say what to do."""
    with pytest.raises(CheckpointError) as refusal:
        checkpoint.load(path, **settings)
    first, *advice = str(refusal.value).splitlines()
    assert first.startswith(f"{path}: ")
    assert advice
    return str(refusal.value)


@BOTH_FORMATS
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_bare_state_dict_gives_the_same_network_back(net, tmp_path, file_format, prefix):
    path = tmp_path / "model2850000.pt"
    torch.save({prefix + name: tensor for name, tensor in net.state_dict().items()}, path, **file_format)
    weights = checkpoint.load(path)
    assert torch.equal(output(weights.network), output(net))
    assert not weights.network.training
    assert not any(p.requires_grad for p in weights.network.parameters())
    assert weights.diffusion == DiffusionConfig()
    assert weights.sha256 == checkpoint.sha256(path)


@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        UNetConfig(width=32, multipliers=(2, 1, 3), blocks=2, attention_at=(1, 4), out_channels=1),
        UNetConfig(width=64, multipliers=(1,), blocks=3, attention_at=(), in_channels=7),
    ],
    ids=["small", "narrow middle", "one level"],
)
def test_names_and_shapes_tell_the_architecture(config, tmp_path):
    torch.save(UNet(config).state_dict(), tmp_path / "model.pt")
    assert checkpoint.load(tmp_path / "model.pt").network.config == config


def test_a_given_architecture_is_believed_where_shapes_cannot_tell_it(net, tmp_path):
    torch.save(net.state_dict(), tmp_path / "model.pt")
    two_heads = SMALL.model_copy(update={"heads": 2})
    assert checkpoint.load(tmp_path / "model.pt", unet=two_heads).network.config == two_heads


@pytest.mark.parametrize(
    ("name", "ema"), [("emasavedmodel_0.9999_2850000.pt", True), ("ema_0.9999_100.pt", True), ("model100.pt", False)]
)
def test_the_files_name_tells_a_moving_average(net, tmp_path, name, ema):
    torch.save(net.state_dict(), tmp_path / name)
    weights = checkpoint.load(tmp_path / name)
    assert weights.ema is ema
    assert str(weights).startswith(f"{name}: {'moving average' if ema else 'raw weights'}")
    assert "1,113,666 parameters" in str(weights)


def test_safetensors_come_back_with_everything_known_about_them(net, tmp_path):
    path = tmp_path / "small.safetensors"
    diffusion = DiffusionConfig(prediction="v", image_range=(-1, 1), window=96)
    unet = SMALL.model_copy(update={"heads": 2})
    checkpoint.save(path, net.state_dict(), unet=unet, diffusion=diffusion, ema=True, notes={"steps": 10, "fold": "a"})
    weights = checkpoint.load(path)
    assert (weights.network.config, weights.diffusion, weights.ema) == (unet, diffusion, True)
    assert weights.notes == {"steps": 10, "fold": "a"}
    for name, tensor in weights.network.state_dict().items():
        assert tensor.dtype == torch.float32
        # float16 has eleven bits: half of the last is 2⁻¹¹ of a value, or 2⁻²⁵ below the normal numbers
        torch.testing.assert_close(tensor, net.state_dict()[name], rtol=2**-11, atol=2**-25)


def test_safetensors_in_float32_come_back_exactly(net, tmp_path):
    path = tmp_path / "ema.safetensors"
    settings = {"unet": SMALL, "diffusion": DiffusionConfig(), "ema": False, "notes": {}}
    checkpoint.save(path, net.state_dict(), **settings, dtype=torch.float32)
    weights = checkpoint.load(path)
    assert torch.equal(output(weights.network), output(net))
    assert not weights.ema  # what is stored counts for more than the name


def test_safetensors_of_somebody_else_are_told_by_their_shapes(net, tmp_path):
    save_file(net.state_dict(), tmp_path / "model.safetensors")
    assert torch.equal(output(checkpoint.load(tmp_path / "model.safetensors").network), output(net))


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors", "."])
def test_a_missing_file_is_named(tmp_path, name):
    assert "no such weights file" in refused(tmp_path / name)


def test_an_optimisers_file_is_refused_as_such(tmp_path):
    layer = nn.Linear(2, 2)
    optimiser = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 2)).sum().backward()
    optimiser.step()
    torch.save(optimiser.state_dict(), tmp_path / "optsavedmodel2850000.pt")
    assert "an optimiser state" in refused(tmp_path / "optsavedmodel2850000.pt")


@BOTH_FORMATS
@pytest.mark.parametrize("kept", [0, 0.3, 0.999])
def test_a_truncated_pt_file_is_refused_as_such(net, tmp_path, file_format, kept):
    path = tmp_path / "model.pt"
    torch.save(net.state_dict(), path, **file_format)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    assert "truncated" in refused(path)


@pytest.mark.parametrize("kept", [0, 0.0001, 0.3, 0.999])
def test_a_truncated_safetensors_file_is_refused_as_such(saved, kept):
    whole = saved.read_bytes()
    saved.write_bytes(whole[: int(kept * len(whole))])
    assert "truncated" in refused(saved)


@BOTH_FORMATS
def test_a_small_file_cut_anywhere_is_refused(tmp_path, file_format):
    path = tmp_path / "model.pt"
    torch.save({"weight": torch.ones(2)}, path, **file_format)
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        assert str(path) in refused(path)


class Malicious:
    """Creates a file when it is unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


@BOTH_FORMATS
def test_nothing_in_a_malicious_pickle_is_executed(net, tmp_path, file_format):
    trace = tmp_path / "trace"
    torch.save({**net.state_dict(), "evil": Malicious(trace)}, tmp_path / "model.pt", **file_format)
    assert "holds more than tensors" in refused(tmp_path / "model.pt")
    assert not trace.exists()
    torch.load(tmp_path / "model.pt", weights_only=False)
    assert trace.exists()  # the attack is a real one


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_nothing_in_a_plain_pickle_is_executed(tmp_path, protocol):
    trace = tmp_path / "trace"
    (tmp_path / "model.pt").write_bytes(pickle.dumps(Malicious(trace), protocol))
    assert "only tensors are unpickled" in refused(tmp_path / "model.pt")
    assert not trace.exists()


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
def test_a_web_page_saved_as_weights_is_refused(tmp_path, name):
    (tmp_path / name).write_text("<!DOCTYPE html><title>404</title>")
    assert "not a" in refused(tmp_path / name)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_torchscript_program_is_refused_without_advice_to_run_it(tmp_path):
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "model.pt")
    message = refused(tmp_path / "model.pt")
    assert "TorchScript" in message
    assert "False" not in message


@pytest.mark.parametrize(
    "content",
    [{}, {"weight": 3}, {"state_dict": {}}, torch.ones(2), {"a": torch.ones(2).to_sparse()}, {"a": torch.ones(1) * 1j}],
    ids=["empty", "number", "nested", "tensor", "sparse", "complex"],
)
def test_anything_but_named_tensors_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "model.pt")
    assert "not a state dict of named tensors" in refused(tmp_path / "model.pt")


@pytest.mark.parametrize(
    "state",
    [
        nn.Linear(2, 2).state_dict(),
        {1: torch.ones(2)},
        {"time_embed.0.weight": torch.ones(2, 32)},
        {"time_embed.0.weight": torch.ones(2)},
        {"time_embed.0.weight": torch.ones(2, 32), "input_blocks.x": torch.ones(2)},
    ],
    ids=["layer", "number as name", "no blocks", "one dimension", "other names"],
)
def test_the_tensors_of_something_else_are_refused(tmp_path, state):
    torch.save(state, tmp_path / "model.pt")
    message = refused(tmp_path / "model.pt")
    assert "not those of a guided-diffusion U-Net" in message
    assert f"beginning with {next(iter(state))}" in message


@pytest.mark.parametrize("stored", ["3", "null", '{"unet": {"breadth": 1}}', '{"diffusion": []}', "{"])
def test_settings_that_make_no_sense_are_refused(net, tmp_path, stored):
    save_file(net.state_dict(), tmp_path / "model.safetensors", metadata={checkpoint.METADATA: stored})
    refused(tmp_path / "model.safetensors")


def test_a_wrong_architecture_names_the_tensors_that_do_not_fit(net, tmp_path):
    state = dict(net.state_dict())
    del state["middle_block.1.qkv.weight"]
    state["label_emb.weight"] = torch.ones(1)
    state["out.2.bias"] = torch.ones(5)
    torch.save(state, tmp_path / "model.pt")
    assert refused(tmp_path / "model.pt").splitlines()[0].endswith("wrong architecture")
    assert refused(tmp_path / "model.pt").splitlines()[1:4] == [
        "  missing: middle_block.1.qkv.weight",
        "  unexpected: label_emb.weight",
        "  differing: out.2.bias is (5,), not (2,)",
    ]


@pytest.mark.parametrize("change", [{"multipliers": (1, 2)}, {"blocks": 2}, {"attention_at": ()}, {"in_channels": 4}])
def test_weights_that_contradict_the_given_architecture_are_refused(saved, tmp_path, change):
    torch.save(load_file(saved), tmp_path / "model.pt")
    assert "wrong architecture" in refused(tmp_path / "model.pt", unet=SMALL.model_copy(update=change))


def test_what_is_stored_with_the_weights_wins_over_a_parameters_file(saved):
    weights = checkpoint.load(saved, unet=UNetConfig(), diffusion=DiffusionConfig(prediction="v"))
    assert weights.network.config == SMALL
    assert weights.diffusion == checkpoint.load(saved).diffusion


def test_the_stored_settings_are_readable_by_anyone(saved):
    header = json.loads(saved.read_bytes()[8 : 8 + int.from_bytes(saved.read_bytes()[:8], "little")])
    stored = json.loads(header["__metadata__"][checkpoint.METADATA])
    assert stored["unet"]["width"] == 32
    assert stored["diffusion"]["prediction"] == "eps"
