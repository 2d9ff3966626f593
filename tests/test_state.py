"""Checkpoints and exported weights: the moving average is written, and only the same recipe can resume."""

import nibabel as nib
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState

from brats_inpainting.config import TrainConfig
from brats_inpainting.data import cache
from brats_inpainting.data.cache import TrainingCase
from brats_inpainting.data.nifti import LPS
from brats_inpainting.diffusion import checkpoint
from brats_inpainting.errors import ConfigError
from brats_inpainting.state import MUTABLE, State, export_state
from brats_inpainting.train import train
from brats_inpainting.validate import Validation

from .conftest import brain, lesion
from .test_train import BOXES, RECIPE, with_

SHAPE = (40, 40, 16)
BOTH = pytest.mark.parametrize("recipe", [RECIPE, BOXES], ids=["2D", "3D"])


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """One small complete case, and its prepared scan."""
    folder = tmp_path_factory.mktemp("case")
    paths = [folder / f"A-{name}.nii.gz" for name in ("t1n", "mask-healthy")]
    for path, array in zip(paths, (brain(SHAPE), lesion(SHAPE).astype(np.uint8)), strict=True):
        nib.save(nib.Nifti1Image(array, LPS), path)
    files = TrainingCase("A", *paths, None)
    (folder / "cache").mkdir()
    cache._prepare(files, folder / "cache" / f"A-{files.key}.npy")
    return files


def two_step_state(recipe, folder):
    """A state after two steps, with a network that differs from its average."""
    state = State.start(recipe, fold=0, data="data")
    state.open(folder, resume=False)
    for epoch in range(2):
        with torch.no_grad():
            for parameter in state.network.parameters():
                parameter.add_(torch.randn_like(parameter))
        state.advance(epoch, 1)
    return state


def has_parameters(path, network):
    """Compare a weights file with a network, in half precision, as weights are written."""
    found = checkpoint.load(path).network.state_dict()
    return all(torch.equal(found[name].half(), tensor.half()) for name, tensor in network.state_dict().items())


@BOTH
def test_weights_are_those_of_the_first_moving_average_however_they_are_written(recipe, tmp_path):
    state = two_step_state(recipe, tmp_path / "run")
    average = state.averages[0].module
    assert not any(torch.equal(a, b) for a, b in zip(average.parameters(), state.network.parameters(), strict=True))
    state.save(None)
    assert has_parameters(tmp_path / "run" / "weights.safetensors", average)
    ours, raw, first, _ = export_state(tmp_path / "run", tmp_path / "export")
    assert has_parameters(ours, average)
    assert has_parameters(first, average)
    assert has_parameters(raw, state.network)
    (tmp_path / "run" / "weights.safetensors").unlink()
    state.save_if_best(0.5)
    assert has_parameters(tmp_path / "run" / "weights.safetensors", average)


@BOTH
def test_the_moving_average_validates_and_not_the_network(recipe, case, tmp_path):
    state = two_step_state(recipe, tmp_path)
    validation = Validation.of([case], recipe)
    before = validation.run(state, tmp_path)
    with torch.no_grad():
        for parameter in state.network.parameters():
            parameter.fill_(torch.nan)
    assert validation.run(state, tmp_path) == before


def trained(case, folder, **changes):
    """Train for one step; return the state and the largest change of a parameter."""
    recipe = with_(max_steps=1, batch_size=1, **changes)
    try:
        train(case.t1n.parent, folder, recipe, cache_path=case.t1n.parent / "cache")
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    state = torch.load(folder / "state" / "00000001.pt", weights_only=True)
    begin = State.start(recipe, fold=0, data="").network.state_dict()
    return state, max(float((state["network"][name] - tensor).abs().max()) for name, tensor in begin.items())


def test_the_first_step_is_as_long_as_warm_up_and_clipping_say(case, tmp_path):
    """Adam's first step is the rate itself, whatever the gradient, unless that is small against its epsilon, 1e-8."""
    for name, changes, length in (
        ("plain", {}, 1e-3),
        ("warm-up", {"warmup": 50}, 2e-5),
        ("decay", {"decay": 4}, 2.5e-4),
        ("clip", {"clip": 1e-12}, 0),
    ):
        state, moved = trained(case, tmp_path / name, **changes)
        assert moved == pytest.approx(length, rel=0.01, abs=1e-6), name
        assert state["optimiser"]["param_groups"][0]["lr"] == pytest.approx(length or 1e-3), name


# For every setting that affects the result, a value that differs from RECIPE's.
OTHER = {
    "unet": {"width": 64},
    "diffusion": {"window": 64},
    "masks": "synthetic",
    "augmentation": {"flip": True},
    "windows_per_scan": 3,
    "held_out": 1,
    "limit": 7,
    "seed": 1,
    "batch_size": 2,
    "accumulate": 2,
    "optimiser": "muon",
    "lr": 1e-4,
    "warmup": 2,
    "decay": 2,
    "clip": 1.0,
    "ema": (0.9,),
    "ema_warmup": True,
    "last_timestep": 0.5,
    "weighting": "region",
    "weight_outside": 0.5,
    "ssim": 0.1,
    "levels": 9,
    "precision": "bf16",
    "checkpointing": True,
    "compile": True,
    "fold": 1,
    "data": "other",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder with a state."""
    folder = tmp_path_factory.mktemp("run")
    two_step_state(RECIPE, folder).save(None)
    return folder


def test_every_setting_of_a_recipe_is_compared_or_known_to_be_mutable():
    assert {*OTHER} | MUTABLE == {*TrainConfig.model_fields} | {"fold", "data"}
    assert not {*OTHER} & MUTABLE


@pytest.mark.parametrize("name", OTHER)
def test_a_run_is_not_resumed_with_another(name, run):
    inputs = {"fold": 0, "data": "data"}
    changed = inputs | {name: OTHER[name]} if name in inputs else inputs
    recipe = RECIPE if name in inputs else with_(**{name: OTHER[name]})
    with pytest.raises(ConfigError, match=f"the run there has another {name}\n"):
        State.start(recipe, **changed).open(run, resume=True)


def test_a_state_of_another_versions_muon_is_refused(tmp_path):
    recipe = TrainConfig(unet={"width": 32, "multipliers": (1,), "blocks": 1, "attention_at": ()}, optimiser="muon")
    state = State.start(recipe, fold=0, data="")
    state.open(tmp_path, resume=False)
    state.save(None)
    path = next((tmp_path / "state").glob("*.pt"))
    content = torch.load(path)
    torch.save(content | {"optimiser": {"muon": {}, "adamw": {}}}, path)
    with pytest.raises(ConfigError, match="saved by another version's Muon"):
        State.start(recipe, fold=0, data="").open(tmp_path, resume=True)
