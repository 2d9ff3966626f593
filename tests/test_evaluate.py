"""Scores of folders, their tables in every form, and fills without a network."""

import csv
import json
import math
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from scipy import stats

from brats_inpainting import baselines, evaluate, metrics, tables
from brats_inpainting.data import cases, validation, volume
from brats_inpainting.errors import CaseError, ConfigError
from brats_inpainting.evaluate import ScoreRow
from brats_inpainting.fill import fill_folder
from brats_inpainting.layouts import CaseFolder

from .conftest import LPS, ball, brain, lesion, write_case

SHAPE = (48, 48, 20)
IDS = [f"BraTS-GLI-{number:05d}-000" for number in range(4)]


@pytest.fixture
def complete(tmp_path):
    """Four complete cases, and two folders of fills: one off by 50, one off by more from case to case."""
    for seed, case_id in enumerate(IDS):
        truth, healthy = brain(SHAPE, seed), lesion(SHAPE, radius=0.12)
        folder = write_case(tmp_path / "data", case_id, shape=SHAPE, mask=healthy, seed=seed)
        for kind, values in (("t1n", truth), ("mask-healthy", healthy.astype(np.uint8))):
            nib.save(nib.Nifti1Image(values, LPS), folder / f"{case_id}-{kind}.nii.gz")
        for model, off in (("good", 50), ("bad", 100 + 50 * seed)):
            (tmp_path / model).mkdir(exist_ok=True)
            filled = nib.Nifti1Image(np.where(healthy, truth + off, truth).astype(np.float32), LPS)
            nib.save(filled, tmp_path / model / cases.output_name(case_id))
    return tmp_path


def scored(root, *models, **options):
    found = evaluate.find(evaluate.names([root / model for model in models]), root / "data", **options)
    return evaluate.evaluate(found, quiet=True)


def test_every_case_is_scored_for_every_model_in_order(complete):
    rows, failed = scored(complete, "good", "bad")
    assert not failed
    assert [(row.case, row.model) for row in rows] == [(case, model) for case in IDS for model in ("good", "bad")]
    truth, healthy = brain(SHAPE, 0), lesion(SHAPE, radius=0.12)
    filled = np.where(healthy, truth + 50, truth)
    expected = metrics.score(filled, truth, np.where(healthy, 0, truth), healthy)
    assert (rows[0].ssim, rows[0].psnr, rows[0].mse) == expected[:3]
    assert rows[0].stripe_index == metrics.stripe_index(filled, healthy)
    assert rows[0].stripe_index_truth == metrics.stripe_index(truth, healthy)
    assert rows[0].boundary_contrast == metrics.boundary_contrast(filled, truth, healthy)
    assert (rows[0].changed_inside, rows[0].changed_outside) == (healthy.sum(), 0)


def test_voxels_changed_outside_the_mask_are_counted(complete):
    path = complete / "good" / cases.output_name(IDS[0])
    values = np.asarray(nib.load(path).dataobj).copy()
    values[24, 24, :3] += 1
    nib.save(nib.Nifti1Image(values, LPS), path)
    assert scored(complete, "good")[0][0].changed_outside == 3


def test_what_cannot_be_scored_is_named_and_the_rest_goes_on(complete):
    (complete / "good" / cases.output_name(IDS[0])).unlink()
    nib.save(nib.Nifti1Image(np.ones((9, 9, 9), np.float32), LPS), complete / "bad" / cases.output_name(IDS[1]))
    (complete / "data" / IDS[2] / f"{IDS[2]}-t1n.nii.gz").unlink()
    rows, failed = scored(complete, "good", "bad")
    assert [(row.case, row.model) for row in rows] == [
        (IDS[0], "bad"),
        (IDS[1], "good"),
        (IDS[3], "good"),
        (IDS[3], "bad"),
    ]
    assert set(failed) == {f"good/{IDS[0]}", f"bad/{IDS[1]}", IDS[2]}
    assert "(9, 9, 9) voxels on another grid" in failed[f"bad/{IDS[1]}"]


def test_folders_of_a_cross_validation_need_not_hold_every_case(complete):
    for model, missing in (("good", IDS[:2]), ("bad", IDS[2:])):
        for case_id in missing:
            (complete / model / cases.output_name(case_id)).unlink()
    rows, failed = scored(complete, "good", "bad", pooled=True)
    assert not failed
    assert [row.model for row in rows] == ["bad", "bad", "good", "good"]
    summary = tables.grids(rows, pooled=True)[1]
    assert [line[:2] for line in summary.body if line[1]] == [("bad", "2"), ("good", "2"), ("pooled", "4")]


def test_without_a_truth_only_stripes_and_changes_are_known(complete):
    for case_id in IDS:
        (complete / "data" / case_id / f"{case_id}-t1n.nii.gz").unlink()
    fills = evaluate.find({"good": complete / "good"}, complete / "data")
    rows, failed = evaluate.evaluate(fills, truth_needed=False, quiet=True)
    assert not failed
    assert math.isnan(rows[0].ssim)
    assert rows[0].stripe_index > 0
    assert "SSIM" not in tables.grids(rows)[0].header


def test_folders_of_the_same_name_are_told_apart(tmp_path):
    folders = [tmp_path / "a" / "filled", tmp_path / "b" / "filled"]
    assert evaluate.names(folders) == {"filled": folders[0], "filled (2)": folders[1]}
    assert evaluate.names([folders[0], folders[0]]) == {"filled": folders[0]}


@pytest.mark.parametrize("name", ["truth", "voided", "pooled"])
def test_a_folder_whose_name_has_a_meaning_is_refused(tmp_path, name):
    with pytest.raises(ConfigError, match="Rename"):
        evaluate.names([tmp_path / name])


def test_a_prediction_on_another_grid_is_not_scored(complete):
    path = complete / "good" / cases.output_name(IDS[0])
    moved = LPS.copy()
    moved[0, 3] = 5
    nib.save(nib.Nifti1Image(np.asarray(nib.load(path).dataobj), moved), path)
    rows, failed = scored(complete, "good")
    assert "another grid" in failed[f"good/{IDS[0]}"]
    assert len(rows) == 3


def test_a_fill_that_is_not_all_numbers_is_not_scored(complete):
    path = complete / "good" / cases.output_name(IDS[0])
    values = np.asarray(nib.load(path).dataobj).copy()
    values[0, 0, 0] = np.nan
    nib.save(nib.Nifti1Image(values, LPS), path)
    assert "1 voxels are NaN" in scored(complete, "good")[1][f"good/{IDS[0]}"]


def test_a_healthy_mask_outside_the_mask_is_refused(complete):
    path = complete / "data" / IDS[0] / f"{IDS[0]}-mask-healthy.nii.gz"
    nib.save(nib.Nifti1Image(np.ones(SHAPE, np.uint8), LPS), path)
    assert "outside the mask" in scored(complete, "good")[1][IDS[0]]


def test_folders_that_share_a_case_are_not_pooled(complete):
    with pytest.raises(ConfigError, match="in several folders"):
        scored(complete, "good", "bad", pooled=True)


def test_a_case_that_no_model_filled_is_named_even_in_a_cross_validation(complete):
    (complete / "good" / cases.output_name(IDS[0])).unlink()
    assert set(scored(complete, "good", pooled=True)[1]) == {IDS[0]}


def test_the_rest_of_the_mask_does_not_enter_stripes_and_boundary(complete):
    expected = scored(complete, "good")[0][0]
    folder = complete / "data" / IDS[0]
    mask = lesion(SHAPE, radius=0.12) | ball(SHAPE, (0.55, 0.45, 0.85), 0.1)  # a second part, right above
    nib.save(nib.Nifti1Image(mask.astype(np.uint8), LPS), folder / f"{IDS[0]}-mask.nii.gz")
    path = complete / "good" / cases.output_name(IDS[0])
    rest = mask & ~lesion(SHAPE, radius=0.12)
    found = []
    for level in (0, 900):
        filled = np.where(rest, level, np.asarray(nib.load(path).dataobj)).astype(np.float32)
        nib.save(nib.Nifti1Image(filled, LPS), path)
        found.append(scored(complete, "good")[0][0])
    assert found[0].stripe_index == found[1].stripe_index
    assert found[0].boundary_contrast == found[1].boundary_contrast
    assert found[0].ssim == expected.ssim


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no such folder"):
        evaluate.find({"x": tmp_path / "x"}, tmp_path)


def rows(**models):
    """Rows of made-up SSIMs."""
    return [
        ScoreRow(f"case {i}", model, ssim=value, psnr=20.0, mse=0.01, mae=0.05)
        for model, values in models.items()
        for i, value in enumerate(values)
    ]


def test_the_summary_has_mean_standard_deviation_and_median_of_every_model():
    summary = tables.grids(rows(a=[0.1, 0.2, 0.6]))[1]
    assert summary.body[0][:3] == ("a", "3", f"{0.3:.4f} ± {np.std([0.1, 0.2, 0.6], ddof=1):.4f}")
    assert summary.body[1][2] == "0.2000"


def test_models_are_compared_case_by_case_with_the_first():
    a, b = [0.5, 0.6, 0.7, 0.4, 0.3, 0.8], [0.55, 0.61, 0.78, 0.46, 0.37, 0.82]
    paired = tables.grids(rows(a=a, b=b))[2]
    p = stats.wilcoxon(np.subtract(b, a)).pvalue
    assert paired.body[0] == ("b", "SSIM", "6", f"{np.mean(np.subtract(b, a)):+.4f}", f"{p:.2g}")
    assert paired.body[1][3:] == ("+0.00", "–")  # equal everywhere: nothing to test


def test_a_single_case_is_one_table():
    assert [grid.title for grid in tables.grids(rows(a=[0.5], b=[0.6]))] == ["Cases"]


def test_the_papers_figures_are_marked_as_other_data():
    summary = tables.grids(rows(a=[0.1, 0.2]), published=True)[1]
    assert summary.body[-1][:3] == ("paper, table 2: challenge's validation", "", "0.7804 ± 0.1264")
    assert "other data" in summary.note


def test_the_tables_are_written_in_four_forms(complete, tmp_path):
    found, _ = scored(complete, "good", "bad")
    tables.write(found, tables.grids(found), tmp_path)
    with (tmp_path / "scores.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["case"] for line in lines] == [row.case for row in found]
    assert float(lines[0]["ssim"]) == found[0].ssim  # to the last digit
    stored = json.loads((tmp_path / "scores.json").read_text())
    assert stored["cases"][3]["model"] == "bad"
    assert [table["title"] for table in stored["tables"]] == [grid.title for grid in tables.grids(found)]
    markdown, latex = ((tmp_path / f"scores.{kind}").read_text() for kind in ("md", "tex"))
    assert f"| {IDS[0]} | good | {found[0].ssim:.4f} |" in markdown
    assert r"\toprule" in latex
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == 3
    assert "±" not in latex


def test_an_unknown_score_is_null_in_json(tmp_path):
    tables.write([ScoreRow("a", "m", psnr=math.inf)], [], tmp_path)
    stored = json.loads((tmp_path / "scores.json").read_text())["cases"][0]
    assert stored["ssim"] is stored["psnr"] is None


def test_what_is_unknown_or_infinite_is_not_averaged():
    summary = tables.grids([ScoreRow("a", "m", ssim=1, psnr=math.inf), ScoreRow("b", "m", ssim=math.nan, psnr=20)])[1]
    assert summary.body[0][2:4] == ("1.0000", "∞")


def test_names_cannot_break_a_table():
    grid = tables.Grid("a_b", ("x", "y"), [("50 % | {z}", r"\q~^$#&")])
    assert r"50 % \| {z}" in grid.markdown()
    assert r"50 \% | \{z\} & \textbackslash{}q\~{}\^{}\$\#\&" in grid.latex()


def test_telea_carries_a_constant_surrounding_into_the_hole():
    scan = framed(np.full((40, 40, 4), 0.5, np.float32), lesion((40, 40, 4), radius=0.2))
    assert baselines.telea(scan) == pytest.approx(np.full((40, 40, 4), 0.5), abs=2e-4)  # its own rounding


def test_mirror_takes_the_other_hemisphere_of_a_brain_that_is_not_centred():
    half = np.random.default_rng(0).uniform(0.2, 1, (6, 20, 30)).astype(np.float32)
    brain_SHW = np.zeros((8, 64, 40), np.float32)
    brain_SHW[1:7, 9:49, 5:35] = np.concatenate([half, half[:, ::-1]], axis=1)
    mask_SHW = np.zeros(brain_SHW.shape, bool)
    mask_SHW[2:5, 12:18, 10:20] = True
    filled_SHW = baselines.mirror(framed(np.where(mask_SHW, 0, brain_SHW), mask_SHW))
    assert (filled_SHW == brain_SHW).all()


def test_mirror_falls_back_on_the_mean_where_both_sides_are_masked():
    image_SHW = np.zeros((4, 32, 20), np.float32)
    image_SHW[:, 4:28, 4:16] = np.moveaxis(np.random.default_rng(0).uniform(0.2, 1, (24, 12, 4)), 2, 0)
    mask_SHW = np.zeros(image_SHW.shape, bool)
    mask_SHW[1:3, 6:26, 6:14] = True
    scan = framed(np.where(mask_SHW, 0, image_SHW), mask_SHW)
    assert baselines.mirror(scan)[1, 16, 10] == baselines.mean(scan)[1, 16, 10] > 0


def framed(image_SHW, mask_SHW):
    """A scan as the baselines see it."""
    return SimpleNamespace(image_SHW=image_SHW, mask_SHW=mask_SHW)


def by_baseline(method, complete, *, output=None, **settings):
    """Fill the cases without a network; return what failed."""
    filler = baselines.Baseline(baselines.METHODS[method])
    return fill_folder(filler, CaseFolder(complete / "data"), complete / (output or method), **settings).failed


@pytest.mark.parametrize("method", baselines.METHODS)
def test_every_baseline_fills_a_whole_folder_inside_the_masks_only(method, complete):
    assert not by_baseline(method, complete)
    for row in scored(complete, method)[0]:
        assert row.changed_outside == 0
        assert row.changed_inside > 0


def test_single_samples_average_to_the_result():
    from .conftest import inpainter

    filler = inpainter(samples=3, smoothing=0)
    image, mask = brain((40, 40, 6)), lesion((40, 40, 6))
    images = [nib.Nifti1Image(np.asarray(v, np.float32), LPS) for v in (image, mask)]
    scan = volume.prepare(validation.examine("x", *images, names=("image", "mask")))
    (stack,) = filler.fill([scan], keep=True)
    filled = filler.finish(stack)
    result, std, samples = filled.volume_XYZ, filled.std_XYZ, np.stack(list(filled.samples_XYZ))
    assert len(samples) == 3
    inside = mask & (samples.min(axis=0) > samples.min()) & (samples.max(axis=0) < samples.max())  # not clipped
    assert samples.mean(axis=0)[inside] == pytest.approx(result[inside], rel=1e-5)  # float32 sums
    assert samples.std(axis=0, ddof=1)[inside] == pytest.approx(std[inside], rel=1e-3)  # likewise, of differences
    assert (samples[:, ~mask] == result[~mask]).all()


def test_an_empty_healthy_mask_is_a_clear_message(complete):
    path = complete / "data" / IDS[0] / f"{IDS[0]}-mask-healthy.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros(SHAPE, np.uint8), LPS), path)
    _, failed = scored(complete, "good")
    assert "the mask is empty" in failed[f"good/{IDS[0]}"]


def test_the_largest_plane_of_a_mask_is_drawn_unless_another_is_asked_for():
    from brats_inpainting.pictures import Plane

    mask = ball((30, 30, 30), (0.3, 0.5, 0.7), 0.1)
    assert Plane.through(mask, mask, "axial").index in (20, 21)
    assert Plane.through(mask, mask, "sagittal", 4).index == 4
    with pytest.raises(ConfigError, match="slices 0 to 29"):
        Plane.through(mask, mask, "coronal", 30)


def test_a_slice_that_is_masked_completely_gets_the_mean():
    image_SHW = np.full((4, 12, 12), 0.5, np.float32)
    mask_SHW = np.zeros(image_SHW.shape, bool)
    mask_SHW[1] = True
    scan = framed(np.where(mask_SHW, 0, image_SHW), mask_SHW)
    for method in (baselines.biharmonic, baselines.telea):
        assert (method(scan) == 0.5).all()


def test_a_baseline_fills_arrays_in_memory():
    scan_XYZ, mask_XYZ = brain((40, 40, 12)), lesion((40, 40, 12))
    filled_XYZ = baselines.Baseline(baselines.mean).inpaint(np.where(mask_XYZ, 0, scan_XYZ), mask_XYZ).image
    np.testing.assert_array_equal(filled_XYZ[~mask_XYZ], scan_XYZ[~mask_XYZ])
    tissue = scan_XYZ[(scan_XYZ > 0) & ~mask_XYZ]
    np.testing.assert_allclose(filled_XYZ[mask_XYZ], tissue.mean(), rtol=0.02)  # the highest voxels are clipped


def raising(_scan):
    raise ZeroDivisionError


@pytest.mark.parametrize(
    ("method", "told"),
    [
        (raising, "raising failed: ZeroDivisionError"),
        (lambda _scan: None, r"<lambda> returned object, \(\)\n  Return numbers in \[0, 1\], of the shape \("),
        (lambda scan: scan.image_SHW[:-1], "<lambda> returned float32"),
        (lambda scan: np.where(scan.mask_SHW, np.nan, scan.image_SHW), "without NaN"),
    ],
)
def test_a_method_that_fails_fails_its_case_alone(method, told):
    filler = baselines.Baseline(method)
    with pytest.raises(CaseError, match=told):
        filler.inpaint(brain((40, 40, 12)), lesion((40, 40, 12)))


def test_a_baseline_does_not_overwrite_unasked(complete):
    with pytest.raises(ConfigError, match="--overwrite"):
        by_baseline("mean", complete, output="good")
    assert not by_baseline("mean", complete, output="good", existing="overwrite")
