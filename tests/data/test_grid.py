"""Resampling to the network's grid and back."""

import numpy as np
import pytest

from brats_inpainting.data import grid
from brats_inpainting.data.grid import Grid

from ..conftest import ball, lesion


def smooth_volume(shape, spacing):
    """A smooth function of the position in mm."""
    places = np.meshgrid(*((np.arange(n) + 0.5) * s for n, s in zip(shape, spacing, strict=True)), indexing="ij")
    return sum(np.sin(place / 9 + axis) for axis, place in enumerate(places)).astype(np.float32)


@pytest.mark.parametrize("spacing", [(0.5, 0.5, 0.5), (0.8, 0.8, 0.8), (2, 2, 2), (1, 1, 3), (0.94, 0.94, 1.2)])
def test_a_smooth_volume_is_the_same_at_1_mm_and_back(spacing):
    shape = tuple(round(48 / side) for side in spacing)
    found = Grid.of(shape, spacing)
    assert found.network == (48, 48, 48) or found.resamples
    given, inner = smooth_volume(shape, spacing), (slice(4, -4),) * 3
    at_1_mm = found.apply(given, np.zeros(shape, bool))
    expected = smooth_volume(found.network, [n * s / m for n, s, m in zip(shape, spacing, found.network, strict=True)])
    np.testing.assert_allclose(at_1_mm[inner], expected[inner], atol=0.02)  # of a range of 6
    np.testing.assert_allclose(found.undo(at_1_mm)[inner], given[inner], atol=0.04)


def test_within_5_percent_of_1_mm_nothing_is_resampled():
    given = smooth_volume((8, 9, 10), (1, 1, 1))
    for found in (Grid.of(given.shape, (0.96, 1.04, 1)), Grid.of(given.shape, (3, 3, 3), resample=False)):
        assert not found.resamples
        assert found.apply(given, given > 0) is given
        assert found.undo(given) is given


def test_an_axis_that_keeps_its_size_keeps_its_values():
    given = np.random.default_rng(0).random((12, 13, 14)).astype(np.float32)
    same = grid.resize(given, given.shape)
    np.testing.assert_array_equal(same, given)
    longer = grid.resize(np.repeat(given[:, :, :1], 14, axis=2), (12, 13, 28))
    np.testing.assert_allclose(longer, np.repeat(given[:, :, :1], 28, axis=2), rtol=1e-6)


def test_fine_detail_is_filtered_before_it_is_sampled_more_coarsely():
    stripes = np.tile(np.float32([0, 1]), (32, 32, 16))
    assert np.ptp(grid.resize(stripes, (32, 32, 8))[:, :, 2:-2]) < 0.05  # of 1, without the filter


@pytest.mark.parametrize("spacing", [(0.5, 0.5, 0.5), (0.7, 0.7, 5.5), (1, 1, 3), (2.2, 2.2, 2.2)])
def test_a_mask_at_1_mm_contains_all_of_the_mask(spacing):
    shape = tuple(round(60 / side) for side in spacing)
    found, mask = Grid.of(shape, spacing), lesion(shape, radius=0.2)
    covered, thick = found.cover(mask), found.nearest(mask)
    assert (covered >= thick).all()
    centres = (np.argwhere(mask) + 0.5) * found.network / shape
    assert covered[tuple(centres.astype(int).T)].all()
    volume = mask.sum() * np.prod(spacing)
    assert volume * 0.9 < covered.sum() < volume * 1.35  # a voxel that is partly covered is filled
    single = np.zeros(shape, bool)
    single[tuple(n // 2 for n in shape)] = True
    assert found.cover(single).any()


def test_what_is_in_the_mask_never_reaches_the_tissue_around_it():
    shape, spacing = (64, 64, 20), (0.8, 0.8, 3)
    mask, found = lesion(shape), Grid.of((64, 64, 20), (0.8, 0.8, 3))
    tissue = np.where(ball(shape, (0.5, 0.5, 0.5), 0.45), 0.5, 0).astype(np.float32)
    dark, bright = (found.apply(np.where(mask, level, tissue), mask) for level in (np.float32(0), np.float32(9)))
    np.testing.assert_array_equal(dark, bright)
    assert found.spacing == spacing
