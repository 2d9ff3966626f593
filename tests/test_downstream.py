"""Studies of tools on filled scans: the measures are right where the answer is known; the page shows the CSV files."""

import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from brats_inpainting.data.nifti import LPS
from studies.downstream import (
    bias,
    extraction,
    fills,
    network,
    real,
    realism,
    regions,
    segmentation,
    tables,
    uncertainty,
)

from .conftest import ball, brain, write_case

DOCS = Path(__file__).parents[1] / "docs"
RNG = np.random.default_rng(0)


def test_regions_are_the_mask_a_shell_of_10_mm_and_the_rest_of_the_brain():
    mask, brain = np.zeros((40, 3, 3), bool), np.zeros((40, 3, 3), bool)
    mask[2:5, 1, 1], brain[4:35] = True, True
    found = regions.regions(mask, brain)[:, 1, 1]
    assert [*found[:16]] == [0, 0, 1, 1, 1, *[2] * 10, 3]
    assert [*found[34:36]] == [3, 0]
    assert regions.regions(mask, brain, spacing=2.0)[:, 1, 1][9:11].tolist() == [2, 3]


def test_overlap_counts_each_tissue_in_its_region_only():
    region = np.array([1, 1, 1, 1, 2, 2, 3])
    truth, found = np.array([3, 3, 2, 2, 3, 1, 3]), np.array([3, 2, 2, 2, 3, 3, 3])
    assert regions.overlap(found, truth, region, 3) == {"inside": 2 / 3, "shell": 2 / 3, "elsewhere": 1}
    assert np.isnan(regions.overlap(found, truth, region, 1)["inside"])  # neither has any


def test_displacements_are_summarised_by_region():
    vectors = np.array([[3, 4, 0], [0, 0, 1], [0, 0, 0], [0, 0, 2]])
    found = regions.lengths(vectors, np.array([1, 2, 2, 0]))
    assert (found["inside_mean"], found["shell_mean"], found["shell_p95"]) == pytest.approx((5, 0.5, 0.95))
    assert np.isnan(found["elsewhere_mean"])
    assert regions.lengths(np.array([-2.0, 1.0]), np.array([1, 3]))["inside_mean"] == 2


def test_area_is_the_probability_that_a_wrong_voxel_scores_higher():
    score, wrong = RNG.integers(0, 5, 60), RNG.random(60) < 0.4
    pairs = np.sign(score[wrong][:, None] - score[~wrong]) / 2 + 0.5
    assert regions.area(score, wrong) == pytest.approx(pairs.mean())
    assert np.isnan(regions.area(score, np.zeros(60, bool)))


def test_shared_area_of_histograms_is_1_for_equal_values_and_0_apart():
    values = RNG.normal(size=2000)
    assert real.shared(values, values) == pytest.approx(1)
    assert real.shared(values, values + 100) == 0


def test_a_patch_is_cut_where_a_component_is_deepest():
    mask = np.zeros((60, 60, 60), bool)
    mask[20:35, 20:35, 20:35] = mask[50:60, 50:60, 50:60] = True
    mask[0, 0, 0] = True  # too small
    assert realism.centres(mask) == [(27, 27, 27), (48, 48, 48)]


def pairs(blur, persons=12):
    """Pairs of patches of noise, the second one clipped, or as noisy."""
    found = RNG.normal(1, 0.1, (persons, 2, 24, 24, 24)).astype(np.float32)
    if blur:
        found[:, 1] = ndimage.gaussian_filter(found[:, 1], 1, axes=(1, 2, 3))
    return found


def told(patches, score):
    scores = realism.left_out(patches, np.arange(len(patches)), score)
    rows = [{"real": str(real), "filled": str(filled)} for real, filled in scores]
    return tables.telling(rows)


@pytest.mark.parametrize("classifier", ["logistic regression", "random forest"])
def test_a_classifier_of_texture_tells_blurred_patches_from_noise_but_not_noise_from_noise(classifier):
    pytest.importorskip("sklearn")
    score = realism.CLASSIFIERS[classifier]
    assert told(pairs(blur=True), score) > 0.95
    assert 0.1 < told(pairs(blur=False), score) < 0.9  # 24 patches: chance is 0.5 ± 0.12


def test_a_network_tells_blurred_patches_from_noise_and_is_the_same_each_time(monkeypatch):
    monkeypatch.setattr(network, "EPOCHS", 10)
    blurred = pairs(blur=True, persons=4)
    assert told(blurred, network.score) > 0.95
    one, two = (network.score(blurred[:2].reshape(4, 24, 24, 24), np.array([0, 1, 0, 1]), blurred[2]) for _ in "12")
    assert np.array_equal(one, two)


def test_nobody_is_scored_by_a_model_that_saw_the_same_person():
    patches = np.arange(3)[:, None, None, None, None] * np.ones((1, 2, 2, 2, 2))

    def score(trained, labels, tested):
        assert not np.isin(tested, trained).any()
        assert labels.tolist() == [0, 1] * (len(trained) // 2)
        return np.full(len(tested), tested.max())

    assert realism.left_out(patches, np.arange(3), score).tolist() == [[0, 0], [1, 1], [2, 2]]


def test_means_and_tests_are_over_subjects_and_the_masks_that_both_fills_have():
    read = [
        {"case": f"{person}-00{mask}", "fill": "a", "x": str(person + mask)} for person in range(8) for mask in (0, 1)
    ]
    lower = [row | {"fill": "b", "x": str(float(row["x"]) - 1 - int(row["case"][0]))} for row in read]
    assert tables.mean(read, "x") == 4
    assert tables.paired([*read, *lower], "a", "b", "x") == (pytest.approx(2 / 2**8), 8)  # 8 differences of one sign
    first = [row for row in lower if row["case"].endswith("0")]
    ours, its = tables.common([*read, *first], "a", "b")
    assert [row["case"] for row in ours] == [row["case"] for row in its] == [f"{person}-000" for person in range(8)]


def test_fills_are_made_once_and_read_again(tmp_path):
    write_case(tmp_path / "cases", "BraTS-GLI-00001-000")
    (subject,) = fills.subjects(tmp_path / "cases", tmp_path / "work")
    filled = subject.image("mean")
    inside = subject.mask()
    assert np.ptp(filled[inside]) < 1e-3 * filled.max()  # one value, up to rounding
    assert not subject.image("voided")[inside].any()
    assert (subject.id, subject.person) == ("00001-000", "00001")
    (path,) = (tmp_path / "work" / "mean").iterdir()
    written = path.stat().st_mtime_ns
    assert np.array_equal(subject.image("mean"), filled)
    assert path.stat().st_mtime_ns == written


@pytest.fixture
def subject(tmp_path):
    folder = write_case(tmp_path / "cases", "BraTS-GLI-00001-000")
    nib.save(nib.Nifti1Image(brain((64, 64, 12)), LPS), folder / "BraTS-GLI-00001-000-t1n.nii.gz")
    return fills.subjects(tmp_path / "cases", tmp_path / "work")[0]


def test_bias_fields_are_compared_up_to_a_factor_of_the_whole_brain(subject, monkeypatch):
    mask = subject.mask()
    monkeypatch.setattr(bias, "field", lambda _, fill: (0.5 + 0.01 * mask) * (fill == "mean"))
    (row,) = bias.measured(subject, "mean")
    assert (row["inside_mean"], row["shell_mean"], row["elsewhere_mean"]) == (pytest.approx(1), 0, 0)


def test_the_standard_deviation_that_marks_all_wrong_classes_has_an_area_of_1(subject, monkeypatch):
    bright = subject.image("truth") > 600
    monkeypatch.setattr(fills.Subject, "spread", lambda _: bright * 1.0)
    monkeypatch.setattr(segmentation, "classes", lambda _, fill, __: np.where(bright & (fill == "truth"), 3, 2))
    (row,) = uncertainty.measured(subject, "uncertainty")
    inside = subject.mask()
    assert (row["auc"], row["wrong"]) == (1, pytest.approx(bright[inside].mean()))
    assert (row["wrong_lowest_tenth"], row["wrong_highest_tenth"]) == (0, 1)


def test_brain_that_extraction_loses_is_measured_in_ml(tmp_path, monkeypatch):
    monkeypatch.setattr(extraction, "SIZES", (500,))
    monkeypatch.setattr(extraction, "extracted", lambda head_XYZ: head_XYZ > 0)
    head = ball((24, 48, 48), (0.5, 0.5, 0.5), 0.4)
    volumes = {"t1": 100 * head, "brainmask": head, "mask": ball(head.shape, (0.5, 0.1, 0.5), 0.05)}
    for name, volume in volumes.items():
        nib.save(nib.Nifti1Image(volume.astype(np.float32), np.diag([2, 1, 1, 1])), tmp_path / f"a-{name}.nii.gz")
    (subject,) = extraction.subjects(tmp_path, tmp_path / "work")
    assert subject.image("truth").shape == (47, 48, 48)
    (row,) = extraction.measured(subject, "voided")
    lesion, whole = (np.count_nonzero(a) / 1000 for a in (subject.mask(), subject.image("truth")))
    assert lesion > 0.3
    assert (row["missing"], row["added"], row["lesion"]) == (pytest.approx(lesion), 0, pytest.approx(lesion))
    assert row["dice"] == pytest.approx(2 * (whole - lesion) / (2 * whole - lesion))
    (row,) = extraction.measured(subject, "truth")
    assert (row["missing"], row["added"], row["dice"]) == (0, 0, 1)


def test_the_page_of_evidence_is_short_and_has_its_tables():
    text = (DOCS / "evidence.md").read_text()
    shown = re.findall(r"<!-- table (\S+) -->", text)
    assert {"evidence", "evidence-excess", "evidence-tests"} <= {*shown} <= {*tables.TABLES}
    assert len(re.sub(r"<!-- table.*?<!-- end -->", "", text, flags=re.DOTALL).split()) <= 800
