"""The promise about bad input, row by row: the exit code, the words, the other cases filled, and check knows before.

Full disks, folders that cannot be written and killed runs are in test_interruption.py, a GPU's memory
in test_inpainter.py.
"""

import gzip
import json
import shutil

import nibabel as nib
import numpy as np
import pytest
import torch

from brats_inpainting import cli
from brats_inpainting.diffusion import checkpoint

from .conftest import LPS, ball, brain, lesion, tiny_network, write_case
from .diffusion.test_checkpoint import Malicious

SHAPE = (32, 32, 8)


def run(capfd, *args):
    """Run the app in this process; return its exit code and what it said on stderr."""
    with pytest.raises(SystemExit) as stop:
        cli.main([str(arg) for arg in args])
    return stop.value.code or 0, capfd.readouterr().err


def image_of(folder):
    return folder / f"{folder.name}-t1n-voided.nii.gz"


def mask_of(folder):
    return folder / f"{folder.name}-mask.nii.gz"


def image(array, affine=LPS):
    return lambda folder: nib.save(nib.Nifti1Image(array, affine), image_of(folder))


def mask(array, affine=LPS):
    return lambda folder: nib.save(nib.Nifti1Image(np.asarray(array, np.float32), affine), mask_of(folder))


def both(scan, holes, affine=LPS):
    return lambda folder: (image(scan, affine)(folder), mask(holes, affine)(folder))


def dimensions(*sides):
    """Let the header promise other sides than the file has."""

    def spoil(folder):
        raw = bytearray(gzip.decompress(image_of(folder).read_bytes()))
        raw[40:48] = np.array([3, *sides], "<i2").tobytes()
        image_of(folder).write_bytes(gzip.compress(bytes(raw)))

    return spoil


def with_value(array, value):
    """Put a value into the first three voxels."""
    spoiled = np.array(array, np.float32)
    spoiled.flat[:3] = value
    return spoiled


def shifted(millimetres):
    affine = LPS.copy()
    affine[0, 3] = millimetres
    return affine


IMAGE, MASK, GRID = "{id}-t1n-voided.nii.gz", "{id}-mask.nii.gz", "Resample the mask onto the image"
SLAB = np.arange(SHAPE[2]) == 4

# row → (what is done to a sound case, the words that must be said: file, found, expected, what to do)
REFUSED = {
    "mask-missing": (lambda f: mask_of(f).unlink(), [MASK, "no such file", "Put it there", f"Found: {IMAGE}."]),
    "image-missing": (lambda f: image_of(f).unlink(), [IMAGE, "no such file", "Put it there", f"Found: {MASK}."]),
    "other-shape": (mask(lesion((32, 32, 7))), [IMAGE, MASK, "32×32×8", "32×32×7", "Shapes must be equal", GRID]),
    "other-place": (mask(lesion(SHAPE), shifted(0.01)), [MASK, "origin (0.01, 0, 0)", "affines within 0.001", GRID]),
    "truncated": (
        lambda f: image_of(f).write_bytes(image_of(f).read_bytes()[:-99]),
        [IMAGE, "truncated", "Copy it again"],
    ),
    "not-nifti": (lambda f: mask_of(f).write_bytes(b"nonsense"), [MASK, "not a NIfTI file", "damaged", "again"]),
    "four-dimensional": (image(np.ones((*SHAPE, 2), np.float32)), [IMAGE, "32×32×8×2", "one 3D volume", "Extract one"]),
    "more-than-it-holds": (
        dimensions(32, 32, 400),
        [IMAGE, "has 33,120 bytes", "requires 1,638,752", "Copy it again"],
    ),
    "more-than-the-limit": (
        dimensions(9999, 9999, 9999),
        [IMAGE, "9999×9999×9999", "more than 134,217,728", "Crop it"],
    ),
    "nan": (image(with_value(brain(SHAPE), np.nan)), [IMAGE, "3 NaN or infinite voxels", "Repair the scan"]),
    "infinity": (image(with_value(brain(SHAPE), np.inf)), [IMAGE, "3 NaN or infinite voxels", "(0 is background)"]),
    "negative-mask": (mask(with_value(lesion(SHAPE), -1)), [MASK, "negative or NaN", "1 where tissue is to be filled"]),
    "nan-mask": (mask(with_value(lesion(SHAPE), np.nan)), [MASK, "negative or NaN", "1 where tissue is to be filled"]),
    "mask-over-everything": (
        mask(brain(SHAPE) > 0),
        [MASK, "covers the whole brain", "give a smaller mask, or invert it"],
    ),
    "inverted-mask": (
        both(brain(SHAPE), ~lesion(SHAPE)),
        [MASK, "would replace 9", "of the brain", "If it marks healthy tissue, use --invert-mask"],
    ),
    "labels": (
        mask(2 * lesion(SHAPE, radius=0.3) + 97 * lesion(SHAPE)),
        [MASK, "has labels 2 (", "99 (", "% of the brain", "Choose the lesion's with --label 99"],
    ),
    "percent": (
        mask(60.5 * lesion(SHAPE, radius=0.3) + 38 * lesion(SHAPE)),
        [MASK, "values from 0 to 98.5", "% of the brain above half", "Use --threshold 50"],
    ),
    "two-masks": (
        lambda f: (f / f"{f.name}_mask.nii").touch(),
        [MASK, "{id}_mask.nii", "more than one mask", "Keep one of them"],
    ),
    "constant": (image(np.full(SHAPE, 7, np.float32)), [IMAGE, "is 7 everywhere", "Export the scan again"]),
    "all-zero": (image(np.zeros(SHAPE, np.float32)), [IMAGE, "is 0 everywhere", "Export the scan again"]),
}

# row → (what is done to a sound case, the warning; none where nothing need be said)
FILLED = {
    "probabilities": (mask(0.8 * lesion(SHAPE) + 0.3 * lesion(SHAPE, radius=0.3)), "voxels above 0.5 are filled"),
    "mask-of-255": (mask(255 * lesion(SHAPE)), "the mask marks the lesion with 255 instead of 1"),
    "empty-mask": (mask(np.zeros(SHAPE)), "the mask is empty: the output is the input"),
    "mask-over-a-slice": (mask((brain(SHAPE) > 0) & SLAB), "the mask leaves no brain in 1 of its axial slices"),
    "head": (both(500.0 * ball(SHAPE, (0.5, 0.5, 0.5), 0.49), lesion(SHAPE), np.diag([10, 10, 10, 1])), "skull"),
    "trailing-axis": (image(np.where(lesion(SHAPE), 0, brain(SHAPE))[..., None]), "trailing axis of length one"),
    "voxels-of-another-size": (both(brain(SHAPE), lesion(SHAPE), np.diag([1, 1.06, 1, 1])), ""),
    "cropped": (image(ball(SHAPE, (0.15, 0.5, 0.5), 0.3) * brain(SHAPE).max()), "the brain is cropped"),
    "no-background": (image(np.random.default_rng(0).uniform(300, 1000, SHAPE)), "no background around"),
    "not-voided": (image(brain(SHAPE)), None),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("promises") / "data"
    write_case(folder, "sound", shape=SHAPE)
    for row, (spoil, _) in {**REFUSED, **FILLED}.items():
        spoil(write_case(folder, row, shape=SHAPE))
    return folder


@pytest.fixture(scope="module")
def infer(data, tiny_weights):
    def call(capfd, out, *args, folder=data, weights=tiny_weights):
        places = ("--data-path", folder, "--output-path", out, "--report-path", out.with_name(f"{out.name}-report"))
        settings = ("--weights", weights, "--device", "cpu", "--steps", 2, "--batch-size", 4, "--no-images")
        return run(capfd, "infer", *places, *settings, *args)

    return call


@pytest.fixture
def filled(infer, capfd, tmp_path_factory):
    """Run all cases once: exit code, what was said, the output folder, and run.json."""
    if not hasattr(infer, "result"):
        out = tmp_path_factory.mktemp("run") / "out"
        code, told = infer(capfd, out)
        infer.result = code, told, out, json.loads((out.parent / "out-report" / "run.json").read_text())
    return infer.result


@pytest.fixture
def one_case(data, tmp_path):
    shutil.copytree(data / "sound", tmp_path / "data" / "sound")
    return tmp_path / "data"


def failures(told):
    """Case → the lines about it at the end of stderr."""
    blocks, last = {}, ""
    for line in told.partition(" failed:\n")[2].splitlines():
        last = last if line.startswith(" ") else line.partition(": ")[0]
        blocks[last] = blocks.get(last, "") + line + "\n"
    return blocks


@pytest.mark.parametrize("row", REFUSED)
def test_a_case_that_cannot_be_filled_is_refused_in_words_and_writes_nothing(filled, row):
    code, told, out, record = filled
    assert code == 3
    for words in REFUSED[row][1]:
        assert words.format(id=row) in failures(told)[row]
    assert record["failed"].keys() >= {row}
    assert not list(out.glob(f"*{row}-t1n*"))


@pytest.mark.parametrize("row", FILLED)
def test_a_case_that_is_odd_is_filled_with_a_warning(filled, data, row):
    _, told, out, record = filled
    warnings = record["cases"][row]["warnings"]
    assert bool(warnings) == bool(FILLED[row][1])
    if FILLED[row][1]:
        assert any(FILLED[row][1] in warning for warning in warnings)
        assert f"{row}: " in told
    given, made = nib.load(image_of(data / row)), nib.load(out / f"{row}-t1n-inference.nii.gz")
    outside = np.asarray(nib.load(mask_of(data / row)).dataobj).reshape(made.shape) <= 0.5
    assert made.shape == given.shape
    assert (np.asarray(made.dataobj)[outside] == np.asarray(given.dataobj, made.get_data_dtype())[outside]).all()


def test_the_other_cases_are_written_and_have_the_bytes_of_a_run_of_their_own(filled, infer, one_case, tmp_path, capfd):
    _, _, out, record = filled
    assert {path.name.removesuffix("-t1n-inference.nii.gz") for path in out.iterdir()} == {"sound", *FILLED}
    assert record["failed"].keys() == REFUSED.keys()
    assert infer(capfd, tmp_path / "out", folder=one_case)[0] == 0
    name = "sound-t1n-inference.nii.gz"
    assert (tmp_path / "out" / name).read_bytes() == (out / name).read_bytes()


def test_check_finds_every_one_of_them_beforehand_all_at_once(filled, data, capfd):
    code, told = run(capfd, "check", "--data-path", data)
    assert code == 3
    assert failures(told) == failures(filled[1])
    for row, (_, warning) in FILLED.items():
        assert not warning or f"{row}: " in told


def test_a_scan_that_was_not_voided_is_voided(filled):
    """With the same brain under the mask, and with none there, the fill is the same to the bit."""
    out = filled[2]
    files = [(out / f"{name}-t1n-inference.nii.gz").read_bytes() for name in ("not-voided", "sound")]
    assert files[0] == files[1]


def test_a_folder_without_cases_says_what_was_looked_for(infer, tmp_path, capfd):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "scan.dcm").touch()
    for code, told in (
        infer(capfd, tmp_path / "out", folder=tmp_path / "data"),
        run(capfd, "check", "--data-path", tmp_path / "data"),
    ):
        assert code == 2
        for words in ("no case found", "Looked for ID/ID-t1n-voided.nii.gz", "Found: scan.dcm", "--image T1 --mask"):
            assert words in told
    assert not (tmp_path / "out").exists()


def save(content):
    return lambda path: torch.save(content, path)


def truncated(path):
    torch.save(tiny_network().state_dict(), path)
    path.write_bytes(path.read_bytes()[:-999])


def wrong(path):
    state = tiny_network().state_dict()
    torch.save(dict(list(state.items())[:-1]), path)


CHECKPOINTS = {
    "missing": (lambda _: None, "no such weights file"),
    "truncated": (truncated, "truncated or not a PyTorch file"),
    "optimiser": (save({"state": {}, "param_groups": []}), "this is an optimiser state"),
    "architecture": (wrong, "wrong architecture\n  missing: out.2.bias"),
    "another's": (
        save(torch.nn.Linear(2, 2).state_dict()),
        "its tensors, or the settings stored with them, are not those of a guided-diffusion U-Net",
    ),
    "malicious": (lambda path: torch.save(Malicious(path.with_name("canary")), path), "holds more than tensors"),
}


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_weights_that_cannot_be_used_exit_with_2_and_say_which_it_is(infer, tmp_path, capfd, kind):
    spoil, words = CHECKPOINTS[kind]
    spoil(tmp_path / "model.pt")
    code, told = infer(capfd, tmp_path / "out", "--steps", 1, weights=tmp_path / "model.pt")
    assert code == 2
    assert f"{tmp_path / 'model.pt'}: {words.splitlines()[0]}" in told
    assert words in told
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "canary").exists()


PARAMETERS = {
    "seed: [": "not YAML",
    "seed: 1\nstepz: 2": "line 2: stepz: unknown key\n  Did you mean steps?",
    "seed: soon": "line 1: seed: 'soon'",
    "samples: 0": "line 1: samples: 0: Input should be greater than 0",
}


@pytest.mark.parametrize("text", PARAMETERS)
def test_parameters_that_cannot_be_used_exit_with_2_and_name_key_and_line(infer, tmp_path, capfd, text):
    (tmp_path / "p.yaml").write_text(text)
    code, told = infer(capfd, tmp_path / "out", "--parameters-file", tmp_path / "p.yaml")
    assert code == 2
    assert f"{tmp_path / 'p.yaml'}" in told
    assert PARAMETERS[text] in told
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["", "clip_denoised: True,\nlr: 0.1\n"])
def test_an_empty_file_means_defaults_and_guided_diffusions_keys_are_known(
    infer, filled, one_case, tmp_path, capfd, text
):
    (tmp_path / "p.yaml").write_text(text)
    assert infer(capfd, tmp_path / "out", "--parameters-file", tmp_path / "p.yaml", folder=one_case)[0] == 0
    name = "sound-t1n-inference.nii.gz"
    assert (tmp_path / "out" / name).read_bytes() == (filled[2] / name).read_bytes()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_gives_the_cpu_and_a_warning(tiny_weights, one_case, tmp_path, capfd):
    (tmp_path / "p.yaml").write_text("gpu_id: 'cuda:0'")
    places = ("--data-path", one_case, "--output-path", tmp_path / "out", "--weights", tiny_weights)
    code, told = run(capfd, "-q", "infer", *places, "--parameters-file", tmp_path / "p.yaml")
    assert code == 0
    assert told.startswith("on the CPU: ")


def test_the_weights_are_recorded_by_their_whole_hash(filled, tiny_weights):
    digest = checkpoint.sha256(tiny_weights)
    assert filled[3]["weights"].endswith(f"SHA-256 {digest}")
    assert filled[3]["settings"]["weights"] == digest
