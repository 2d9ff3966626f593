"""Synthetic healthy-tissue masks: shape, size, placement and repeatability."""

import numpy as np
import pytest
from scipy import ndimage

from brats_inpainting.data import masks

from ..conftest import ball

SEEDS = range(8)


BRAIN = ball((96, 96, 80), (0.5, 0.5, 0.5), 0.4)
DISTANCE = ndimage.distance_transform_edt(~ball(BRAIN.shape, (0.5, 0.3, 0.5), 0.1))


def draw(seed):
    rng = np.random.default_rng(seed)
    return masks.healthy_mask(BRAIN, DISTANCE, [masks.compartment(rng, 5_000) for _ in range(3)], rng)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("voxels", [800, 20_000])
def test_a_compartment_is_one_piece_without_holes_in_its_bounding_box(seed, voxels):
    shape = masks.compartment(np.random.default_rng(seed), voxels)
    assert ndimage.label(shape)[1] == 1
    assert (ndimage.binary_fill_holes(shape) == shape).all()
    assert all(shape.take([0, -1], axis).any(axis=(axis - 1, axis - 2)).all() for axis in range(3))


def test_compartments_have_about_the_size_that_was_asked_for():
    sizes = [masks.compartment(np.random.default_rng(seed), 5_000).sum() for seed in range(20)]
    assert np.median(sizes) == pytest.approx(
        5_000, rel=0.2
    )  # the rough surface adds a tenth; single ones scatter by 20 %
    assert min(sizes) > 2_500
    assert max(sizes) < 10_000


def test_a_pool_holds_the_asked_number_of_compartments_small_and_large():
    sizes = [shape.sum() for shape in masks.compartments(np.random.default_rng(0), 20)]
    assert len(sizes) == 20
    assert min(sizes) < 3_000
    assert max(sizes) > 30_000


@pytest.mark.parametrize("seed", SEEDS)
def test_a_moved_compartment_keeps_its_volume_and_is_one_box(seed):
    rng = np.random.default_rng(seed)
    shape = masks.compartment(rng, 5_000)
    moved = masks.rotated(shape, rng)
    assert moved.sum() == pytest.approx(shape.sum(), rel=0.05)  # nearest neighbour: 2 % at the surface
    assert all(moved.take([0, -1], axis).any(axis=(axis - 1, axis - 2)).all() for axis in range(3))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_healthy_mask_lies_in_the_brain_and_away_from_the_tumour(seed):
    mask = draw(seed)
    assert mask.shape == BRAIN.shape
    assert mask.dtype == bool
    assert BRAIN[mask].mean() >= 0.75
    assert DISTANCE[mask].min() >= 5


def test_the_same_seed_gives_the_same_mask_and_another_seed_another():
    assert (draw(0) == draw(0)).all()
    assert (draw(0) & draw(1)).sum() < 0.9 * draw(0).sum()


def test_of_two_places_the_farther_from_the_tumour_is_taken():
    brain = np.zeros((32, 32, 32), bool)
    brain[12:21, 12:21, 4:13] = brain[12:21, 12:21, 20:29] = True
    distance = np.where(np.arange(32) < 16, 10.0, 20.0) * np.ones(brain.shape)
    shapes = [np.ones((3, 3, 3), bool)]
    drawn = [masks.healthy_mask(brain, distance, shapes, np.random.default_rng(seed)) for seed in range(40)]
    farther = np.mean([distance[mask].min() == 20 for mask in drawn])
    assert farther == pytest.approx(0.75, abs=0.2)  # unless both places are near; 40 draws scatter by 0.07, one sigma


def test_where_no_mask_fits_an_error_says_so():
    brain = ball((32, 32, 32), (0.5, 0.5, 0.5), 0.25)
    far, too_close = np.full(brain.shape, 5.0), np.full(brain.shape, 4.9)
    fitting, too_large = np.ones((3, 3, 3), bool), np.ones((16, 16, 16), bool)
    assert brain[masks.healthy_mask(brain, far, [fitting], np.random.default_rng(0))].mean() >= 0.75
    for distance, shape in [(too_close, fitting), (far, too_large)]:
        with pytest.raises(ValueError, match="no place for a healthy mask"):
            masks.healthy_mask(brain, distance, [shape], np.random.default_rng(0))
