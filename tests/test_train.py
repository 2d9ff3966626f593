"""The minimal training loop: it learns, saves what inference loads, and goes on where it stopped."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from brats_inpainting.config import BUNDLED_WEIGHTS, DiffusionConfig, TrainConfig, UNetConfig
from brats_inpainting.data import dataset
from brats_inpainting.data.dataset import FreshMasks
from brats_inpainting.diffusion import checkpoint
from brats_inpainting.diffusion.unet import UNet
from brats_inpainting.errors import ConfigError
from brats_inpainting.infer import LPS
from brats_inpainting.train import read_recipe, train

from .conftest import brain

UNET = UNetConfig(width=32, multipliers=(1, 1), blocks=1, attention_at=(), out_channels=2)
DIFFUSION = DiffusionConfig(prediction="x0", image_range=(-1, 1), window=32)
RECIPE = TrainConfig(
    unet=UNET, diffusion=DIFFUSION, max_steps=200, batch_size=4, lr=1e-3, ema=0.9, save_every=50, seed=1
)


@pytest.fixture
def scans(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "SHAPES", 8)
    folder = tmp_path / "scans"
    for seed in range(2):
        path = folder / f"BraTS-GLI-{seed:05d}-000" / f"BraTS-GLI-{seed:05d}-000-t1n.nii.gz"
        path.parent.mkdir(parents=True)
        nib.save(nib.Nifti1Image(brain((72, 72, 64), seed), LPS), path)
    return folder


def test_training_learns_and_its_weights_load(scans, tmp_path):
    weights = checkpoint.load(train(scans, tmp_path / "run", RECIPE))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert weights.network.config == UNET
    assert weights.diffusion == DIFFUSION
    assert weights.ema
    assert weights.notes["step"] == 200
    assert lines[-1]["loss"] < 0.8 * lines[0]["loss"]  # the second hundred steps against the first


def test_training_goes_on_where_it_stopped(scans, tmp_path, caplog):
    caplog.set_level("INFO")
    half = RECIPE.model_copy(update={"max_steps": 3})
    train(scans, tmp_path / "run", half)
    before = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
    train(scans, tmp_path / "run", RECIPE.model_copy(update={"max_steps": 5}))
    after = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
    assert (before["step"], after["step"]) == (3, 5)
    assert "resumed at step 3" in caplog.text


def test_slices_are_windows_that_cover_a_mask_in_the_brain(scans):
    stream = iter(FreshMasks(scans, window=32, seed=0))
    for truth, mask in (next(stream) for _ in range(20)):
        assert truth.shape == mask.shape == (1, 32, 32)
        assert truth.min() >= 0
        assert truth.max() <= 1
        assert set(np.unique(mask)) <= {0, 1}
        assert mask.any()


def test_the_same_seed_gives_the_same_slices(scans):
    streams = [iter(FreshMasks(scans, window=32, seed=seed)) for seed in (0, 0, 1)]
    a, b, c = (next(stream)[0] for stream in streams)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_a_folder_without_scans_and_a_bad_recipe_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="t1n"):
        FreshMasks(tmp_path, window=32, seed=0)
    (tmp_path / "recipe.yaml").write_text("max_stepz: 3")
    with pytest.raises(ConfigError, match="max_stepz"):
        read_recipe(tmp_path / "recipe.yaml")


def test_the_papers_recipe_is_the_default():
    recipe = read_recipe(Path(__file__).parents[1] / "workspace" / "parameters" / "paper.yaml")
    assert recipe == TrainConfig()


def test_the_bundled_recipe_stays_within_five_gflop_a_window():
    recipe = read_recipe(Path(__file__).parents[1] / "workspace" / "parameters" / "small.yaml")
    side = recipe.diffusion.window
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        UNet(recipe.unet)(torch.zeros(1, 3, side, side), torch.zeros(1))
    assert flops.get_total_flops() == pytest.approx(4.9e9, rel=0.01)  # as the model card says, rounded
    weights = checkpoint.load(BUNDLED_WEIGHTS)
    assert weights.network.config == recipe.unet
    assert weights.diffusion == recipe.diffusion
