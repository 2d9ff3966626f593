"""The challenge's scores: closed forms, the official package's own numbers, and bad input; then the stripe index."""

import math
import sys
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from inpainting.challenge_metrics_2023 import generate_metrics
from scipy import ndimage

from brats_inpainting.data import cases, volume
from brats_inpainting.data.example import write_example
from brats_inpainting.errors import CaseError, ConfigError
from brats_inpainting.evaluate import sibling_path
from brats_inpainting.metrics import boundary_contrast, score, stripe_index


def official(prediction, truth, voided, healthy):
    """The official package's scores of one case, by our names."""
    volumes = [torch.tensor(np.asarray(v, np.float32))[None] for v in (prediction, truth, voided)]
    with warnings.catch_warnings(action="ignore"):  # its own
        return generate_metrics(*volumes, torch.tensor(healthy)[None])


def assert_official(*case):
    ours, theirs = score(*case)._asdict(), official(*case)
    assert ours == pytest.approx({name: theirs[name] for name in ours}, rel=1e-6, abs=1e-6)


def random_case():
    """Prediction, truth, voided scan and mask; the mask touches three faces of the volume."""
    rng = np.random.default_rng(0)
    truth = 200 + 500 * rng.random((32, 32, 24))
    prediction = truth + 300 * (rng.random(truth.shape) - 0.4)
    healthy = np.zeros(truth.shape, bool)
    healthy[0:14, 8:27, 13:24] = True
    truth[~healthy] *= 1.5
    return prediction, truth, np.where(healthy, 0, truth), healthy


def two_level_case(offset):
    """A truth of 200 and 800 in the mask, a prediction that is off by a constant; the percentiles are 0 and 1000."""
    healthy = np.zeros((16, 16, 16), bool)
    healthy[4:12, 4:12, 4:12] = True
    truth = np.where(np.arange(16) < 8, 200.0, 800.0) * np.ones(healthy.shape)
    voided = np.where(healthy, 0, 1000)
    return truth + offset, truth, voided, healthy


def test_the_scores_are_those_of_the_official_package():
    assert_official(*random_case())


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(*[st.integers(11, 40)] * 3),
    smooth=st.sampled_from([0, 1, 3]),
    fill=st.sampled_from(["noise", "constant", "perfect", "far too bright"]),
    size=st.floats(0.02, 1),
)
def test_the_scores_are_those_of_the_official_package_on_random_volumes(seed, shape, smooth, fill, size):
    rng = np.random.default_rng(seed)
    truth = (1000 * ndimage.gaussian_filter(rng.random(shape), smooth)).astype(np.float32) + 1
    healthy = np.zeros(shape, bool)
    healthy[tuple(slice(a, a + max(3, round(size * n))) for n in shape for a in [rng.integers(0, n - 3)])] = True
    voided = np.where(healthy | (rng.random(shape) < 0.1), 0, truth)
    if not np.percentile(voided, 99.5) > 0:
        voided[:, :, 0] = truth[:, :, 0]
    inside = {
        "noise": truth + rng.normal(0, 100, shape),
        "constant": truth.mean(),
        "perfect": truth,
        "far too bright": 10 * truth,
    }[fill]
    prediction = np.where(healthy, inside, truth).astype(np.float32)
    assert_official(prediction, truth, voided, healthy)


@pytest.mark.slow
def test_the_scores_of_the_example_are_those_of_the_official_package(tmp_path):
    write_example(tmp_path)
    case = cases.find(tmp_path)[0]
    paths = (sibling_path(case, "t1n"), case.image, sibling_path(case, "mask-healthy"))
    whole = [volume.read(path) for path in paths]
    brain = ndimage.find_objects((whole[0] > 0).astype(np.uint8))[0]  # whole volumes take the official package 30 s
    truth, voided, healthy = (volume[brain] for volume in whole)
    prediction = np.where(healthy > 0.5, ndimage.gaussian_filter(truth, 3), truth)
    assert_official(prediction, truth, voided, healthy > 0.5)


def test_a_constant_truth_is_an_error():
    prediction, truth, voided, healthy = random_case()
    with pytest.raises(CaseError, match="constant inside the mask"):
        score(prediction, np.where(healthy, 100, truth), voided, healthy)


def test_a_perfect_prediction_scores_one_zero_and_infinity():
    _, truth, voided, healthy = random_case()
    scores = score(truth, truth, voided, healthy)
    assert scores.ssim == pytest.approx(1, abs=1e-12)  # float64 rounding
    assert scores[1:] == (math.inf, 0, 0, 0, 0, math.inf)


def test_a_constant_offset_gives_the_scores_of_the_closed_form():
    scores = score(*two_level_case(offset=100))
    assert scores.mse == pytest.approx(0.01)
    assert scores.rmse == pytest.approx(0.1)
    assert scores.mae == pytest.approx(0.1)
    assert scores.msle == pytest.approx((math.log(1.3 / 1.2) ** 2 + math.log(1.9 / 1.8) ** 2) / 2)
    assert scores.psnr_01 == pytest.approx(20)
    # In [0.2, 0.8] the upper level is clamped onto the truth: half the voxels are off by 0.1, half are right.
    assert scores.psnr == pytest.approx(10 * math.log10(0.6**2 / 0.005))


def test_ssim_is_taken_slice_by_slice_along_x():
    level_X = np.array([0, 1000, 1000, 1000])[:, None, None]
    truth = level_X * np.ones((4, 16, 16))
    scores = score(truth / 2, truth, truth, truth >= 0)
    c1 = 0.01**2  # the data range is 1; flat slices have no variance, their contrast term is 1
    flat = (2 * 0.5 * 1 + c1) / (0.5**2 + 1**2 + c1)
    assert scores.ssim == pytest.approx((1 + 3 * flat) / 4, abs=1e-9)  # float64, variances by cancellation


def test_what_lies_outside_the_mask_does_not_count():
    prediction, truth, voided, healthy = random_case()
    elsewhere = np.random.default_rng(1).uniform(0, 5000, truth.shape)
    garbled = [np.where(healthy, volume, elsewhere) for volume in (prediction, truth)]
    assert score(*garbled, voided, healthy) == score(prediction, truth, voided, healthy)


def test_scores_are_the_same_for_every_type_of_array():
    prediction, truth, voided, healthy = (np.round(volume) for volume in random_case())
    expected = score(prediction, truth, voided, healthy)
    assert score(*(volume.astype(np.uint16) for volume in (prediction, truth, voided, healthy))) == expected
    flipped = (volume[:, :, ::-1] for volume in (prediction, truth, voided, healthy))
    assert score(*flipped)[1:] == pytest.approx(expected[1:], rel=1e-12)  # another order of sums
    assert score(*(volume.astype(">f4") for volume in (prediction, truth, voided, healthy))) == expected


def test_a_nan_in_the_mask_makes_every_score_nan():
    prediction, truth, voided, healthy = random_case()
    prediction[10, 10, 20] = np.nan
    assert all(math.isnan(value) for value in score(prediction, truth, voided, healthy))


def test_an_empty_mask_is_an_error():
    prediction, truth, voided, healthy = random_case()
    with pytest.raises(CaseError, match="mask is empty"):
        score(prediction, truth, voided, np.zeros_like(healthy))
    with pytest.raises(CaseError, match="mask is empty"):
        stripe_index(truth, np.zeros_like(healthy))


def test_volumes_of_different_shapes_are_an_error_with_both_shapes():
    prediction, truth, voided, healthy = random_case()
    for volumes in [(prediction[1:], truth, voided), (prediction, truth[1:], voided), (prediction, truth, voided[1:])]:
        with pytest.raises(CaseError, match=r"\(31, 32, 24\).*\(32, 32, 24\)"):
            score(*volumes, healthy)
    with pytest.raises(CaseError, match=r"\(31, 32, 24\).*\(32, 32, 24\)"):
        stripe_index(truth[1:], healthy)


def test_a_voided_scan_without_intensities_is_an_error():
    prediction, truth, voided, healthy = random_case()
    with pytest.raises(CaseError, match="voided scan"):
        score(prediction, truth, np.zeros_like(voided), healthy)


def test_without_torchmetrics_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics.functional.image", None)
    with pytest.raises(ConfigError, match=r"pip install 'brats-inpainting\[eval\]'"):
        score(*random_case())


def test_the_boundary_contrast_is_the_ratio_of_the_jumps_at_the_masks_edge():
    rng = np.random.default_rng(0)
    truth = rng.integers(1, 9, (12, 12, 12)).astype(np.float32)
    truth[:5, 6] = 0  # background beside the mask does not count
    mask = np.zeros(truth.shape, bool)
    mask[3:8, 3:6, 3:9] = True
    jumps = {}
    for name, filled in {"truth": truth, "filled": np.where(mask, 20, truth)}.items():
        pairs = [
            abs(filled[p] - filled[q])
            for p in np.ndindex(mask.shape)
            for axis in range(3)
            for step in (-1, 1)
            if mask[p]
            for q in [tuple(n + step * (i == axis) for i, n in enumerate(p))]
            if not mask[q] and truth[q]
        ]
        jumps[name] = np.mean(pairs)
    assert boundary_contrast(truth, truth, mask) == 1
    filled = np.where(mask, 20, truth)
    assert boundary_contrast(filled, truth, mask) == pytest.approx(jumps["filled"] / jumps["truth"])


def ramp(slope_inside=1.0):
    """A volume that rises by 1 per slice, or by another slope inside a mask, and steeply along x and y."""
    mask = np.zeros((24, 24, 24), bool)
    mask[8:16, 8:16, 8:16] = True
    x, y, z = np.indices(mask.shape)
    return 1 + 7 * x + 5 * y + np.where(mask, slope_inside * z, z), mask


@pytest.mark.parametrize("slope", [0, 1, 3])
def test_the_stripe_index_is_the_ratio_of_steps_along_z(slope):
    assert stripe_index(*ramp(slope)) == slope


def test_only_tissue_near_the_mask_enters_the_stripe_index():
    volume, mask = ramp(3)
    volume[:12][~mask[:12]] = 0  # background beside the mask
    volume[:, :, :3] = volume[:, :, 21:] = 1e6  # the mask is 4 voxels deep: this lies 5 away
    assert stripe_index(volume, mask) == 3


def test_small_integers_do_not_wrap_around_in_the_stripe_index():
    _, mask = ramp()
    falling = (100 - np.indices(mask.shape)[2]).astype(np.uint8)
    assert stripe_index(falling, mask) == 1


def test_the_stripe_index_of_a_lone_slice_or_without_tissue_around_is_nan():
    volume, mask = ramp()
    lone = mask & (np.arange(24) == 12)
    assert math.isnan(stripe_index(volume, lone))
    assert math.isnan(stripe_index(np.where(mask, volume, 0), mask))
