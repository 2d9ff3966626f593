"""The background's level, noise and padding."""

import numpy as np
import pytest
from scipy import ndimage

from brats_inpainting.data.background import Background

from ..conftest import ball, brain, lesion
from .test_volume import prepared

SHAPE = (64, 64, 32)
NONE = np.zeros(SHAPE, bool)


def around(level):
    """A brain of 300 to 1000 on another background."""
    image = brain(SHAPE)
    return np.where(image > 0, image, level).astype(np.float32)


@pytest.mark.parametrize("level", [0, 12.5, -1, -1024, -32768, 4095])
def test_a_constant_background_is_found_exactly(level):
    found = Background.of(around(level), NONE)
    assert (found.level, found.noise, found.found) == (level, 0, True)
    assert (found.foreground(around(level)) == (brain(SHAPE) > 0)).all()


@pytest.mark.parametrize(("level", "floor"), [(0, 0), (-1, 0), (-1024, 0), (-32768, 0), (4095, 0)])
def test_padding_is_no_part_of_the_scale(level, floor):
    found = Background.of(around(level), NONE)
    assert (found.floor, found.is_padding) == (floor, floor != level)


@pytest.mark.parametrize("spread", [0.003, 3])
def test_ringing_and_noise_are_background(spread):
    noise = np.random.default_rng(0).normal(0, spread, SHAPE)
    image = np.where(brain(SHAPE) > 0, brain(SHAPE), noise).astype(np.float32)
    found = Background.of(image, NONE)
    assert abs(found.level) < spread
    assert found.found
    wrong = found.foreground(image) != (brain(SHAPE) > 0)
    assert wrong.mean() < 1e-4


def test_the_noise_of_air_around_a_head_is_background():
    rng = np.random.default_rng(0)
    head = np.where(ball(SHAPE, (0.5, 0.5, 0.5), 0.4), 600, 0)
    image = np.hypot(head + rng.normal(0, 12, SHAPE), rng.normal(0, 12, SHAPE)).astype(np.float32)
    found = Background.of(image, NONE)
    assert 5 < found.level < 20
    assert (found.foreground(image) != (head > 0)).mean() < 0.001


def test_a_crop_inside_the_brain_has_no_background():
    image = np.random.default_rng(0).normal(700, 100, SHAPE).astype(np.float32)
    found = Background.of(image, NONE)
    assert not found.found
    assert found.foreground(image).all()


def test_a_tight_crop_with_background_in_its_corners_has_it():
    image = np.where(ball(SHAPE, (0.5, 0.5, 0.5), 0.62), brain(SHAPE) + 300, 0).astype(np.float32)
    found = Background.of(image, NONE)
    assert (found.level, found.found) == (0, True)


@pytest.mark.parametrize("level", [-1024, -32768])
def test_a_scan_with_padding_is_seen_like_one_without(level):
    mask = lesion(SHAPE)
    plain, padded = prepared(around(0), mask), prepared(around(level), mask)
    np.testing.assert_array_equal(padded.image_SHW, plain.image_SHW)
    assert padded.box == plain.box
    rim_SHW = np.where(np.arange(224) < 112, np.float32(0), np.float32(0.5)) * np.ones_like(plain.image_SHW)
    filled = padded.inside(rim_SHW)
    assert (filled[~mask] == around(level)[~mask]).all()
    assert set(np.unique(filled[mask]).round()) == {0, plain.intensity.undo(np.float32(0.5)).round()}


@pytest.mark.parametrize("level", [-1024, -32768])
@pytest.mark.parametrize("order", [1, 3])
def test_padding_that_blends_with_tissue_is_no_part_of_the_scale(level, order):
    mask = lesion(SHAPE)
    plain, padded = (ndimage.shift(around(value), 0.5, order=order, mode="nearest") for value in (0, level))
    seen, expected = prepared(padded, mask), prepared(plain.clip(0), mask)
    assert (seen.background.floor, seen.background.is_padding) == (0, True)
    assert (seen.inside(seen.image_SHW)[~mask] == padded[~mask]).all()
    if order == 3:
        return  # the scan itself overshoots at the edge of the padding
    inner_SHW = seen.frame.cut(ball(SHAPE, (0.5, 0.5, 0.5), 0.3)) & ~seen.mask_SHW
    np.testing.assert_allclose(seen.image_SHW[inner_SHW], expected.image_SHW[inner_SHW], atol=0.01)


def test_a_dark_fill_is_padding_only_where_it_touches_padding():
    mask = ball(SHAPE, (0.5, 0.5, 0.5), 0.1) | ball(SHAPE, (0.1, 0.5, 0.5), 0.12)
    scan = prepared(around(-1024), mask)
    filled = scan.inside(np.zeros_like(scan.image_SHW))
    assert (filled[ball(SHAPE, (0.5, 0.5, 0.5), 0.1)] == 0).all()
    assert (filled[ball(SHAPE, (0.1, 0.5, 0.5), 0.12)] == -1024).all()
    known = (around(-1024) == -1024) & ~mask
    assert (scan.everywhere(scan.image_SHW)[known] == -1024).all()


def test_a_mask_over_everything_leaves_nothing_to_measure():
    assert Background.of(around(0), ~NONE) == Background(0, 0, 0)


def test_what_is_seen_around_a_brain_mask_is_no_brighter_than_the_brain():
    rng = np.random.default_rng(0)
    inside = ball(SHAPE, (0.5, 0.5, 0.5), 0.4)
    image = np.where(inside, rng.uniform(-0.4, 0.5, SHAPE), rng.uniform(-0.5, 0.5, SHAPE)).astype(np.float32)
    assert Background.of(image, NONE, inside).floor < -0.39
