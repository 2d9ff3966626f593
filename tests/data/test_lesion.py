"""What the values of a mask mean: one thing, or the case is refused with the options that choose."""

import numpy as np
import pytest

from brats_inpainting.data.lesion import TOO_MUCH, UNAMBIGUOUS, MaskReading, extent, lesion_of
from brats_inpainting.errors import CaseError

MASK = np.zeros((4, 5, 6), bool)
MASK[1:3, 2:4, 1:5] = True
OTHER = np.zeros_like(MASK)
OTHER[0, 0] = True


def read(values, **reading):
    return lesion_of(np.asarray(values, np.float32), MaskReading(**reading), name="m.nii.gz", share=np.mean)


def refused(values, **reading):
    with pytest.raises(CaseError, match=r"m\.nii\.gz") as error:
        read(values, **reading)
    assert len(str(error.value).splitlines()) == 2
    return str(error.value)


@pytest.mark.parametrize("low", [0, -0.2, 1e-4])
@pytest.mark.parametrize("high", [1, 0.9995, 1.27, 0.501])
def test_shares_are_cut_at_one_half_also_with_the_overshoot_of_splines(low, high):
    mask_XYZ, warning = read(np.where(MASK, high, low))
    assert (mask_XYZ == MASK).all()
    binary = high in (1, 0.9995) and low in (0, 1e-4)
    assert bool(warning) != binary


@pytest.mark.parametrize("value", [0.5, 0.4])
def test_one_half_is_not_lesion(value):
    mask_XYZ, warning = read(MASK + OTHER * value)
    assert (mask_XYZ == MASK).all()
    assert "voxels above 0.5 are filled" in warning
    assert f"has values up to {value}, none above 0.5" in refused(MASK * value)


@pytest.mark.parametrize("value", [2, 99, 255, 2.55, 65535, 255.0005])
def test_the_one_value_besides_0_is_lesion(value):
    mask_XYZ, warning = read(MASK * value)
    assert (mask_XYZ == MASK).all()
    assert f"marks the lesion with {round(value, 2):g} instead of 1" in warning


def test_nothing_is_said_of_an_empty_or_a_binary_mask():
    assert read(MASK)[1] == read(MASK * 0)[1] == read(MASK, invert=True)[1] == ""


def test_several_labels_are_refused_with_their_voxels():
    told = refused(1 * MASK + 41 * OTHER)
    assert f"1 ({MASK.sum()} voxels), 41 ({OTHER.sum()} voxels), together" in told
    assert "--label 41 (repeat, or use commas)" in told
    assert refused(np.arange(MASK.size)).count("voxels)") == 6
    assert "6 (1 voxels), …" in refused(np.arange(MASK.size))


def test_for_a_scan_no_label_is_proposed():
    told = refused(10 * np.arange(MASK.size))
    assert f"has {MASK.size - 1} different values" in told
    assert "A scan? Give its lesion mask" in told


@pytest.mark.parametrize("slope", [1, 1.00001])
def test_labels_choose_the_lesion_and_any_other_value_is_not(slope):
    values = slope * (1 * MASK + 4 * OTHER)
    assert (read(values, labels=(4,))[0] == OTHER).all()
    assert (read(values, labels=(1, 4))[0] == (MASK | OTHER)).all()
    assert (read(values - 3, labels=(1,))[0] == OTHER).all()  # others may be negative
    assert (read(values, labels=(1, 4), invert=True)[0] == ~(MASK | OTHER)).all()


def test_a_probability_in_percent_is_refused_until_its_threshold_is_given():
    values = np.linspace(0, 98.7, MASK.size).reshape(MASK.shape)
    told = refused(values)
    assert "values from 0 to 98.7, 50 % of the brain above half" in told
    assert "A probability in percent? Use --threshold 50" in told
    assert (read(values, threshold=50)[0] == (np.float32(values) > 50)).all()
    assert "--threshold 50." in refused(np.rint(values))
    assert not read(MASK * 50, threshold=50 - 1e-3)[1]


@pytest.mark.parametrize(
    ("reading", "option"),
    [({"labels": (7, 8)}, "--label 7,8"), ({"threshold": 300}, "--threshold 300")],
)
def test_options_that_choose_nothing_are_refused_with_the_values_there_are(reading, option):
    told = refused(1 * MASK + 41 * OTHER, **reading)
    assert f"with {option}\n  Its values: 1 ({MASK.sum()} voxels), 41 (" in told
    assert not read(MASK * 0, **reading)[0].any()  # an empty mask is empty
    assert "--invert-mask\n  Its values: 1 (120 voxels)" in refused(np.ones_like(MASK), invert=True)


@pytest.mark.parametrize("value", [-0.6, -1, np.nan, np.inf])
def test_values_that_no_mask_has_are_refused(value):
    values = np.where(OTHER, value, MASK)
    assert "1 where tissue is to be filled, 0 elsewhere" in refused(values)
    if not value < 0:
        assert "1 where tissue is to be filled" in refused(values, threshold=0.5)
    else:
        assert (read(values, threshold=0.5)[0] == MASK).all()


def test_a_mask_of_most_of_the_brain_must_be_asked_for():
    assert extent(TOO_MUCH, UNAMBIGUOUS, "m") == extent(TOO_MUCH, MaskReading(labels=(1,)), "m") == ""
    with pytest.raises(CaseError, match=r"m would replace 99\.9 % of the brain\n.*--invert-mask.*--threshold 0\.5"):
        extent(0.99999, UNAMBIGUOUS, "m")
    assert extent(0.7, MaskReading(invert=True), "m") == "the mask replaces 70 % of the brain"


def test_settings_name_what_is_not_the_default():
    assert UNAMBIGUOUS.settings() == {}
    assert MaskReading((1, 4), None, invert=True).settings() == {"labels": [1, 4], "invert": True}
    assert MaskReading(threshold=0.0).settings() == {"threshold": 0.0}


def test_a_label_that_is_not_there_is_named():
    mask_XYZ, warning = read(MASK + 4 * OTHER, labels=(1, 3))
    assert (mask_XYZ == MASK).all()
    assert "the mask has no label 3; its values: 1 (" in warning


def test_all_labels_are_suggested_unless_they_are_most_of_the_brain():
    assert "all of them: --label 1,4" in refused(MASK + 4 * OTHER)
    assert "all of them" not in refused(np.where(MASK, 1, 2))
