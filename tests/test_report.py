"""The page about a run, in a real browser; and pictures for papers."""

import io
import json
import os
import re
import shutil

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from brats_inpainting import cli, report
from brats_inpainting.data import cases
from brats_inpainting.data.cases import Case
from brats_inpainting.data.lesion import UNAMBIGUOUS, MaskReading
from brats_inpainting.data.volume import in_lps
from brats_inpainting.evaluate import read_volumes

from .conftest import LPS, brain, lesion, write_case

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
IDS = ["BraTS-GLI-00001-000", "BraTS-GLI-00002-000", "BraTS-GLI-00003-000"]
SHAPE = (56, 56, 24)
needs_browser = pytest.mark.skipif(
    not CHROMIUM and "NEEDS_CHROMIUM" not in os.environ, reason="no Chromium here; .ci/run installs one"
)


def run(*args):
    with pytest.raises(SystemExit) as stop:
        cli.main([str(arg) for arg in args])
    return stop.value.code or 0


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tiny_weights):
    """Complete cases, filled with two samples by a tiny network, with the page that infer writes."""
    root = tmp_path_factory.mktemp("report")
    for seed, case_id in enumerate(IDS):
        truth, healthy = brain(SHAPE, seed), lesion(SHAPE, centre=(0.6, 0.4, 0.5))
        folder = write_case(root / "data", case_id, shape=SHAPE, mask=healthy | lesion(SHAPE, (0.3, 0.6, 0.5), 0.1))
        for kind, values in (("t1n", truth), ("mask-healthy", healthy.astype(np.uint8))):
            nib.save(nib.Nifti1Image(values, LPS), folder / f"{case_id}-{kind}.nii.gz")
    places = ("--data-path", root / "data", "--output-path", root / "out", "--report-path", root / "run")
    assert run("infer", *places, "--weights", tiny_weights, "--samples", 2, "--device", "cpu", "-q") == 0
    return root


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


def opened(browser, path, **settings):
    """Open a page; return it and what it complained of and asked for."""
    page, heard = browser.new_page(**settings), []
    page.on("console", lambda message: message.type == "error" and heard.append(message.text))
    page.on("pageerror", lambda error: heard.append(str(error)))
    asked = [f"file://{path}"]
    page.on("request", lambda request: request.url.startswith("data:") or asked.append(request.url))
    page.goto(asked.pop())
    return page, heard, asked


@needs_browser
def test_the_page_lists_every_case_and_asks_nothing_of_the_network(folders, browser):
    page, heard, asked = opened(browser, folders / "run" / "report.html")
    assert sorted(page.locator("section.case").evaluate_all("found => found.map(s => s.id)")) == IDS
    assert heard == []
    assert set(asked) == {f"file://{folders / 'run' / 'report.html'}"}
    assert page.locator("img").evaluate_all("images => images.every(i => i.complete && i.naturalWidth > 0 && i.alt)")


@needs_browser
def test_the_worst_case_comes_first(folders, browser):
    page, _, _ = opened(browser, folders / "run" / "report.html")
    place = page.locator("[id=-overview] + div thead th").all_inner_texts().index("SSIM")
    rows = page.locator("[id=-overview] + div tbody tr")
    ssim = [float(row.locator("td").nth(place).inner_text()) for row in rows.all()]
    assert ssim == sorted(ssim)
    assert len(ssim) == 3


def apart(one, other):
    """Return the mean difference of two screenshots in grey levels."""
    one, other = (np.asarray(Image.open(io.BytesIO(shot)).convert("L"), float) for shot in (one, other))
    return abs(one - other).mean()


@needs_browser
def test_the_slider_moves_the_picture_by_mouse_and_by_keyboard(folders, browser):
    page, _, _ = opened(browser, folders / "run" / "report.html")
    page.add_style_tag(content=".wipe::after, .view::before { display: none }")  # line, names
    section = page.locator("section.case").first
    planes, slider = section.locator(".planes"), section.locator(".split")
    left, right = (section.locator(f".pick[data-side={side}]") for side in ("left", "right"))

    def seen(share):
        slider.fill(share)
        page.mouse.move(0, 0)
        return planes.screenshot()

    slid = {share: seen(share) for share in ("0", "50", "100")}
    shown = left.input_value(), right.input_value()
    alone = {}
    for share, view in (("100", shown[0]), ("0", shown[1])):
        left.select_option(view)
        right.select_option(view)
        alone[share] = seen("50")
    assert len(set(slid.values())) == 3
    off = {(a, b): apart(slid[a], alone[b]) for a in alone for b in alone}
    assert max(off["0", "0"], off["100", "100"]) < 0.2  # a clipped picture may be scaled with other rounding
    assert min(off["0", "100"], off["100", "0"]) > 1
    left.select_option(shown[0])
    slider.fill("100")
    slider.focus()
    page.keyboard.press("ArrowLeft")
    assert slider.input_value() == "99"
    wipe = section.locator(".wipe").first
    wipe.hover(position={"x": 1, "y": 5})
    assert slider.input_value() == "0"
    left.select_option("voided")
    right.select_option("uncertainty")
    assert section.locator(".view.left").first.get_attribute("data-view") == "voided"
    assert planes.screenshot() not in slid.values()


@needs_browser
def test_flicker_alternates_and_stops(folders, browser):
    page, heard, _ = opened(browser, folders / "run" / "report.html")
    section = page.locator("section.case").first
    button, slider = section.locator(".flicker"), section.locator(".split")
    button.click()
    page.mouse.move(0, 0)
    seen = set()
    for _ in range(12):
        page.wait_for_timeout(250)
        seen.add(slider.input_value())
    assert {"0", "100"} <= seen
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    assert heard == []


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_light_and_dark(folders, browser, scheme):
    page, _, _ = opened(browser, folders / "run" / "report.html", color_scheme=scheme)
    colours = page.evaluate("(s => [s.color, s.backgroundColor])(getComputedStyle(document.body))")
    ink, ground = (sum(int(v) for v in colour[4:-1].split(",")) / 3 for colour in colours)
    dark, bright = (ink, ground) if scheme == "light" else (ground, ink)
    assert dark < 60
    assert bright > 200


@needs_browser
def test_every_view_is_printed(folders, browser):
    page, _, _ = opened(browser, folders / "run" / "report.html")
    page.emulate_media(media="print")
    views = page.locator("section.case").first.locator(".view")
    assert views.evaluate_all("all => all.every(v => getComputedStyle(v).visibility === 'visible')")
    assert not page.locator(".controls").first.is_visible()


def text(folder):
    return (folder / "report.html").read_text()


def test_the_page_tells_settings_and_versions_and_no_path_of_the_machine(folders):
    page, record = text(folders / "run"), json.loads((folders / "run" / "run.json").read_text())
    assert record["settings"]["weights"] in page
    assert "<td>sampling sampler</td><td>dpmpp_2m</td>" in page
    assert "<td>sampling steps</td><td>2</td>" in page
    assert "<td>diffusion steps</td><td>1000</td>" in page
    assert record["versions"]["torch"] in page
    assert str(folders) not in page
    assert "/tmp" not in re.sub(r'"data:[^"]*"', "", page)


def test_infer_keeps_the_single_samples_and_their_spread(folders):
    kept = {path.name for path in (folders / "run").glob("*.nii.gz")}
    assert kept == {f"{i}-t1n-inference-{what}.nii.gz" for i in IDS for what in ("std", "sample-1", "sample-2")}


def test_without_images_the_page_shows_numbers_only(folders, tmp_path):
    places = ("--predictions", folders / "out", "--data-path", folders / "data", "--report-path", tmp_path)
    assert run("report", *places, "--no-images") == 0
    page = text(tmp_path)
    assert "data:image" not in page
    assert "contains no images" in page
    assert all(case_id in page for case_id in IDS)


def test_the_viewer_is_embedded_and_works_without_a_network(folders, tmp_path):
    places = ("--predictions", folders / "out", "--data-path", folders / "data", "--report-path", tmp_path)
    assert run("evaluate", *places, "--viewer") == 0
    page = text(tmp_path)
    assert page.count("<iframe") == 3
    assert "githubusercontent" not in page


@needs_browser
def test_the_viewer_draws_in_the_browser(folders, tmp_path, browser):
    places = ("--predictions", folders / "out", "--data-path", folders / "data", "--report-path", tmp_path)
    assert run("report", *places, "--viewer") == 0
    page, heard, asked = opened(browser, tmp_path / "report.html")
    page.locator("section.case summary").first.click()
    canvas = page.frame_locator("section.case iframe").first.locator("canvas").first
    canvas.wait_for()
    page.wait_for_timeout(500)
    assert canvas.evaluate("c => c.toDataURL().length") > 20_000  # an empty one takes 2000 characters
    assert heard == []
    assert all(url.startswith(("file:", "about:", "blob:")) for url in asked)


def test_several_models_stand_side_by_side(folders, tmp_path):
    assert run("baseline", "--method", "mean", "--data-path", folders / "data", "--output-path", tmp_path / "mean") == 0
    models = ("--predictions", folders / "out", "--predictions", tmp_path / "mean")
    assert run("evaluate", *models, "--data-path", folders / "data", "--report-path", tmp_path / "r") == 0
    page = text(tmp_path / "r")
    assert "Paired differences from out" in page
    assert "mean − truth" in page


def test_the_settings_of_a_run_are_shown_for_its_own_files_only(folders, tmp_path):
    shutil.copytree(folders / "run", tmp_path / "run")
    shutil.copytree(folders / "out", tmp_path / "out")
    places = ("--predictions", tmp_path / "out", "--data-path", folders / "data", "--report-path", tmp_path / "run")
    assert run("evaluate", *places) == 0
    assert text(tmp_path / "run").count("dpmpp_2m") == 1
    assert text(tmp_path / "run").count("uncertainty, axial") == 3
    assert run("baseline", "--method", "mean", *places[2:4], "--output-path", tmp_path / "out", "--overwrite") == 0
    assert run("evaluate", *places) == 0
    assert "dpmpp_2m" not in text(tmp_path / "run")
    assert "uncertainty, axial" not in text(tmp_path / "run")


def test_of_several_models_the_settings_are_those_of_the_first(folders, tmp_path):
    shutil.copytree(folders / "run", tmp_path / "run")
    models = ("--predictions", folders / "out", "--predictions", tmp_path / "mean")
    places = ("--data-path", folders / "data", "--report-path", tmp_path / "run")
    assert run("baseline", "--method", "mean", *places[:2], "--output-path", tmp_path / "mean") == 0
    for first, known in ((models, True), (models[2:] + models[:2], False)):
        assert run("evaluate", *first, *places) == 0
        page = text(tmp_path / "run")
        assert ("<td>filled by</td><td>out</td>" in page) == known
        assert page.count("dpmpp_2m") == known
        assert "uncertainty, axial" not in page  # whose it is the picture does not say


def test_samples_of_an_earlier_run_do_not_stay(folders, tmp_path, tiny_weights):
    places = ("--data-path", folders / "data", "--output-path", tmp_path / "out", "--report-path", tmp_path / "r")
    for samples in (2, 1):
        how = ("--weights", tiny_weights, "--samples", samples, "--overwrite", "--device", "cpu", "--no-images")
        assert run("infer", *places, *how) == 0
        assert len(list((tmp_path / "r").glob("*.nii.gz"))) == (9 if samples == 2 else 0)
    assert "data:image" not in text(tmp_path / "r")


def test_a_single_pair_has_no_truth_unless_it_is_named_as_one(folders, tmp_path, tiny_weights):
    for kind, name in (("t1n", "T1"), ("mask", "lesion")):
        shutil.copy(folders / "data" / IDS[0] / f"{IDS[0]}-{kind}.nii.gz", tmp_path / f"{name}.nii.gz")
    files = ("--image", tmp_path / "T1.nii.gz", "--mask", tmp_path / "lesion.nii.gz", "--output", tmp_path / "o.nii.gz")
    assert run("infer", *files, "--weights", tiny_weights, "--report-path", tmp_path / "r", "--device", "cpu") == 0
    page = text(tmp_path / "r")
    assert 'data-view="filled"' in page
    assert 'data-view="scan"' in page
    assert 'data-view="truth"' not in page
    assert "SSIM 0" not in page
    assert ">Overview</h2>" in page


def test_a_case_that_infer_could_not_fill_is_listed_as_failed(folders, tmp_path, tiny_weights):
    shutil.copytree(folders / "data", tmp_path / "data")
    shutil.copytree(folders / "out", tmp_path / "out")
    (tmp_path / "data" / IDS[1] / f"{IDS[1]}-mask.nii.gz").write_bytes(b"nonsense")
    places = ("--data-path", tmp_path / "data", "--output-path", tmp_path / "out", "--report-path", tmp_path / "r")
    assert run("infer", *places, "--weights", tiny_weights, "--overwrite", "--device", "cpu") == 3
    page = text(tmp_path / "r")
    assert f'id="{IDS[1]}"' not in page
    assert re.search(rf'<li class="message">{IDS[1]}: cannot be read\n  {IDS[1]}-mask.nii.gz: not a NIfTI', page)
    assert re.search(r"^\.message \{ white-space: pre-wrap;", page, re.M)  # line breaks are shown
    assert str(tmp_path) not in page


def test_a_report_among_the_filled_scans_is_refused(folders):
    places = ("--predictions", folders / "out", "--data-path", folders / "data")
    assert run("evaluate", *places, "--report-path", folders / "out") == 2
    assert run("report", *places, "--report-path", folders / "out" / "deeper") == 2


def test_failures_are_on_the_page_without_their_paths(folders, tmp_path):
    shutil.copytree(folders / "out", tmp_path / "out")
    (tmp_path / "out" / cases.output_name(IDS[1])).unlink()
    places = ("--predictions", tmp_path / "out", "--data-path", folders / "data", "--report-path", tmp_path / "r")
    assert run("evaluate", *places) == 3
    page = text(tmp_path / "r")
    assert f"{IDS[1]}, out: " in page
    assert str(tmp_path) not in page


def test_without_what_the_page_needs_infer_still_fills(folders, tmp_path, monkeypatch, capfd, tiny_weights):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    places = ("--data-path", folders / "data", "--output-path", tmp_path / "out", "--report-path", tmp_path / "r")
    assert run("infer", *places, "--weights", tiny_weights, "--device", "cpu") == 0
    assert len(list((tmp_path / "out").iterdir())) == 3
    assert "pip install 'brats-inpainting[report]'" in capfd.readouterr().err


def height(path):
    with Image.open(path) as image:
        return image.height


def test_a_picture_for_a_paper_has_a_row_per_slice(folders, tmp_path):
    places = ("--predictions", folders / "out", "--data-path", folders / "data", "--output", tmp_path / "p.png")
    assert run("picture", *places, "--case", IDS[0], "--case", IDS[1], "--plane", "axial", "--slice", 12) == 0
    two = height(tmp_path / "p.png")
    assert run("picture", *places, "--case", IDS[0], "--plane", "axial") == 0
    assert two == 2 * height(tmp_path / "p.png")
    assert run("picture", *places, "--case", "nobody") == 2
    assert run("picture", *places[:4], "--case", IDS[0], "--output", tmp_path / "p.jpeg") == 2
    assert run("picture", *places, "--case", IDS[0], "--plane", "axial", "--slice", 99) == 2


def test_pictures_of_thick_slices_have_their_shape_in_mm(tmp_path):
    affine = LPS @ np.diag([1, 1, 5, 1])
    for name, volume in (("T1", brain(SHAPE)), ("filled", brain(SHAPE)), ("mask", lesion(SHAPE).astype(np.uint8))):
        nib.save(nib.Nifti1Image(volume, affine), tmp_path / f"{name}.nii.gz")
    case = Case("a", tmp_path / "T1.nii.gz", tmp_path / "mask.nii.gz")
    volumes = read_volumes(case, {"ours": tmp_path / "filled.nii.gz"}, truth_needed=False)
    ratios = {name: report._plane(volumes, name).ratio for name in ("axial", "coronal", "sagittal")}
    x, y, z = (side.stop - side.start for side in ndimage.find_objects((brain(SHAPE) > 0).astype(int))[0])
    assert ratios == pytest.approx({"axial": x / y, "coronal": x / (5 * z), "sagittal": y / (5 * z)})


def volumes_of(tmp_path, reading=UNAMBIGUOUS, brain_mask=None, more_masks=(), **arrays):
    """The volumes of a pair of files."""
    for name, array in arrays.items():
        nib.save(nib.Nifti1Image(array, LPS), tmp_path / f"{name}.nii.gz")
    paths = tmp_path / "T1.nii.gz", tmp_path / "mask.nii.gz", tuple(tmp_path / name for name in more_masks)
    case = Case("a", *paths, brain=brain_mask, reading=reading)
    return read_volumes(case, {"ours": tmp_path / "T1.nii.gz"}, truth_needed=False), cases.load(case)


def test_a_whole_head_is_shown_as_its_brain(tmp_path):
    """Fat is brighter than brain, and the air has noise: neither counts for grey levels, crop and histogram."""
    tissue = brain(SHAPE)
    head = np.where(tissue > 0, tissue, 1.0).astype(np.float32)
    head[2:6, 2:6] = 20 * tissue.max()
    inside = (tissue > 0).astype(np.uint8)
    arrays = {"T1": head, "mask": lesion(SHAPE).astype(np.uint8), "inside": inside}
    volumes, _ = volumes_of(tmp_path, brain_mask=tmp_path / "inside.nii.gz", **arrays)
    assert volumes.white <= tissue.max()
    (box,) = ndimage.find_objects(inside)
    assert volumes.plane("axial").box == box
    (rest,) = (curve for curve in report._charts(volumes)[1].curves if curve.name == report.REST)
    assert rest.points.startswith("0.0,100.0 ")  # no voxel near 0


@pytest.mark.parametrize(
    ("inside", "outside", "margin", "name"),
    [(0, 0, 0, "voided"), (-1000, -1000, 0, "voided"), (0, 0, 1, "voided"), (None, 0, 0, "scan"), (0, 0, None, "scan")],
)
def test_the_input_is_called_voided_only_if_it_is(tmp_path, inside, outside, margin, name):
    """With the background's value, and where the void is smaller than the mask; an empty mask voids nothing."""
    mask, tissue = lesion(SHAPE), brain(SHAPE)
    void = ndimage.binary_erosion(mask, iterations=margin) if margin else mask
    image = np.where(tissue > 0, tissue, outside)
    image = image if inside is None else np.where(void, inside, image)
    mask = np.zeros_like(mask) if margin is None else mask
    volumes, _ = volumes_of(tmp_path, T1=image.astype(np.float32), mask=mask.astype(np.uint8))
    assert report._plane(volumes, "axial").pictures[0].view == name


def test_a_bright_lesion_does_not_darken_the_picture(tmp_path):
    image = np.where(lesion(SHAPE), 20, 1) * brain(SHAPE)
    volumes, _ = volumes_of(tmp_path, T1=image.astype(np.float32), mask=lesion(SHAPE).astype(np.uint8))
    assert volumes.white <= brain(SHAPE).max()


READINGS = {
    "label": (MaskReading(labels=(2,)), lambda mask, tissue: np.where(mask, 2, tissue)),
    "threshold": (MaskReading(threshold=0.9), lambda mask, tissue: np.where(mask, 1, 0.8 * tissue)),
    "inverse": (MaskReading(invert=True), lambda mask, tissue: tissue & ~mask),
    "inverse with air": (MaskReading(invert=True), lambda mask, _tissue: ~mask),
}


@pytest.mark.parametrize("name", READINGS)
def test_the_outline_is_that_of_what_is_filled(tmp_path, name):
    reading, drawn = READINGS[name]
    mask, tissue = lesion(SHAPE), brain(SHAPE) > 0
    values = drawn(mask, tissue).astype(np.float32)
    volumes, loaded = volumes_of(tmp_path, reading, T1=brain(SHAPE), mask=values)
    filled = nib.Nifti1Image(loaded.mask_XYZ.astype(np.uint8), LPS)
    assert 0 < loaded.mask_XYZ.sum() <= mask.sum()
    np.testing.assert_array_equal(volumes.mask_XYZ, in_lps(filled) > 0)


def test_several_masks_are_outlined_together(tmp_path):
    one, other = lesion(SHAPE), lesion(SHAPE, (0.3, 0.6, 0.5), 0.1)
    masks = {"mask": one.astype(np.uint8), "other": other.astype(np.uint8)}
    volumes, _ = volumes_of(tmp_path, more_masks=["other.nii.gz"], T1=brain(SHAPE), **masks)
    assert volumes.mask_XYZ.sum() == (one | other).sum()


def test_the_page_of_a_single_fill_repeats_no_name(folders, tmp_path):
    data = ("--data-path", folders / "data", "--predictions", folders / "out", "--report-path", tmp_path)
    assert run("evaluate", *data) == 0
    page = text(tmp_path)
    assert "filled by" not in page
    assert "All cases, lowest SSIM first" in page
