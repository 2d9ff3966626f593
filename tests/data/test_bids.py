"""BIDS: which mask belongs to which scan, as their names say, and what is written about the fills."""

import json

import pytest

from brats_inpainting import files
from brats_inpainting.data import bids, cases
from brats_inpainting.errors import ConfigError

MASK = "sub-01/anat/sub-01_label-lesion_roi.nii.gz"
SCAN = "sub-01/anat/sub-01_T1w.nii.gz"


@pytest.fixture
def dataset(tmp_path):
    """Make a dataset of empty files: names are all that is read."""

    def make(*names):
        for name in (cases.BIDS, *names):
            path = tmp_path / "raw" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return tmp_path / "raw"

    return make


@pytest.mark.parametrize(
    ("scan", "mask"),
    [
        (SCAN, MASK),
        ("sub-01/anat/sub-01_T1w.nii", "sub-01/anat/sub-01_label-lesion_roi.nii"),
        (SCAN, "sub-01/anat/sub-01_label-lesion_mask.nii.gz"),
        (SCAN, "sub-01/anat/sub-01_space-orig_label-L_mask.nii.gz"),
        (SCAN, "sub-01/anat/sub-01_desc-T1Lesion_mask.nii.gz"),
        (SCAN, "derivatives/manual/sub-01/anat/sub-01_label-LESION_mask.nii.gz"),
        ("sub-1/ses-2/anat/sub-1_ses-2_T1w.nii.gz", "sub-1/ses-2/anat/sub-1_ses-2_label-lesion_roi.nii.gz"),
        ("sub-1/ses-2/anat/sub-1_ses-2_T1w.nii.gz", "derivatives/m/sub-1/ses-2/anat/sub-1_ses-2_desc-lesions_roi.nii"),
        ("sub-01/anat/sub-01_acq-mprage_run-1_desc-brain_T1w.nii.gz", "sub-01/anat/sub-01_run-1_label-lesion_roi.nii"),
    ],
)
def test_a_scan_and_its_mask_find_each_other(dataset, scan, mask):
    folder = dataset(scan, mask)
    case_id = (folder / scan).name.split("_T1w")[0]
    assert bids.find(folder) == [cases.Case(case_id, folder / scan, folder / mask)]


@pytest.mark.parametrize(
    "mask",
    [
        "sub-01/anat/sub-01_mask.nii.gz",
        "sub-01/anat/sub-01_desc-brain_mask.nii.gz",
        "sub-01/anat/sub-01_label-lesion_probseg.nii.gz",
        "sub-01/anat/sub-01_run-1_label-lesion_mask.nii.gz",
        "sub-01/anat/sub-01_label-lesion_roi.json",
        "sub-01/anat/.partial-sub-01_label-lesion_roi.nii.gz",
        "sub-01/ses-1/anat/sub-01_ses-1_label-lesion_roi.nii.gz",
        "sub-02/anat/sub-02_label-lesion_roi.nii.gz",
        "sub-01/sub-01_label-lesion_roi.nii.gz",
    ],
)
def test_other_masks_are_not_taken_and_the_error_says_what_was_looked_for(dataset, mask):
    with pytest.raises(ConfigError, match=r"none of 1 T1w scans has a lesion mask\n  Looked for sub-X"):
        bids.find(dataset(SCAN, mask))


@pytest.mark.parametrize("entity", ["acq", "ce", "dir", "rec", "res", "run"])
def test_a_mask_of_another_acquisition_or_run_is_not_taken(dataset, entity):
    scan = f"sub-01/anat/sub-01_{entity}-1_T1w.nii.gz"
    own, other = (f"sub-01/anat/sub-01_{entity}-{value}_label-lesion_roi.nii.gz" for value in (1, 2))
    folder = dataset(scan, other)
    with pytest.raises(ConfigError, match="none of 1 T1w scans has a lesion mask"):
        bids.find(folder)
    assert [case.mask for case in bids.find(dataset(own))] == [folder / own]


def test_runs_have_masks_of_their_own_and_other_scans_are_counted(dataset, caplog):
    runs = [f"sub-01/anat/sub-01_run-{run}_{kind}.nii.gz" for run in (1, 2) for kind in ("T1w", "label-lesion_roi")]
    with caplog.at_level("INFO"):
        found = bids.find(dataset(*runs, "sub-02/anat/sub-02_T1w.nii.gz"))
    assert [(case.id, case.mask.name) for case in found] == [
        (f"sub-01_run-{run}", f"sub-01_run-{run}_label-lesion_roi.nii.gz") for run in (1, 2)
    ]
    assert "2 T1w scans with a lesion mask, 1 without" in caplog.text


def test_what_was_filled_earlier_is_no_input(dataset):
    folder = dataset(SCAN, MASK, "sub-01/anat/sub-01_desc-inpainted_T1w.nii.gz")
    assert [case.id for case in bids.find(folder)] == ["sub-01"]


def test_two_masks_for_one_scan_are_an_error_that_names_both(dataset):
    second = "derivatives/manual/sub-01/anat/sub-01_desc-lesion_mask.nii.gz"
    with pytest.raises(ConfigError, match="more than one lesion mask") as error:
        bids.find(dataset(SCAN, MASK, second))
    assert MASK in str(error.value)
    assert second in str(error.value)


@pytest.mark.parametrize(
    "second",
    ["sub-01/anat/sub-01_T1w.nii", "sub-01/anat/sub-01_desc-brain_T1w.nii.gz", "sub-02/anat/sub-01_T1w.nii.gz"],
)
def test_two_scans_with_one_name_for_their_fills_are_an_error(dataset, second):
    masks = (MASK, "sub-02/anat/sub-01_label-lesion_roi.nii.gz")
    with pytest.raises(ConfigError, match=r"both fills would be sub-01_desc-inpainted_T1w\.nii\.gz"):
        bids.find(dataset(SCAN, *masks, second))


def test_participants_are_chosen_by_their_labels(dataset):
    folder = dataset(*(path.replace("01", label) for label in ("01", "02", "03") for path in (SCAN, MASK)))
    assert [case.id for case in bids.find(folder, ["sub-01, 03"])] == ["sub-01", "sub-03"]
    assert [case.id for case in bids.find(folder, ["02", "sub-03"])] == ["sub-02", "sub-03"]
    with pytest.raises(ConfigError, match=r"--participant-label 4: not in .*\n  There: 01, 02, 03\."):
        bids.find(folder, ["01", "4"])


def test_the_mask_of_an_unchosen_participant_may_be_ambiguous(dataset):
    other = [path.replace("01", "02") for path in (SCAN, MASK, MASK.replace("roi", "mask"))]
    assert len(bids.find(dataset(SCAN, MASK, *other), ["01"])) == 1


@pytest.mark.parametrize(
    ("case_id", "name"),
    [
        ("sub-01", "sub-01_desc-inpainted_T1w.nii.gz"),
        ("sub-01_desc-brain", "sub-01_desc-inpainted_T1w.nii.gz"),
        ("sub-01_acq-x_run-1_space-orig_res-1", "sub-01_acq-x_run-1_space-orig_res-1_desc-inpainted_T1w.nii.gz"),
    ],
)
def test_a_fill_is_named_after_its_scan(tmp_path, case_id, name):
    place = tmp_path / "sub-01" / "anat"
    case = cases.Case(case_id, place / f"{case_id}_T1w.nii.gz", place / "mask")
    assert list(bids.jobs([case], tmp_path, tmp_path / "derivatives" / "out")) == [
        tmp_path / "derivatives" / "out" / "sub-01" / "anat" / name
    ]


def test_the_dataset_of_somebody_else_is_not_written_into(dataset):
    folder = dataset(SCAN, MASK)
    (folder / cases.BIDS).write_text('{"Name": "brats-inpainting"}')
    with pytest.raises(ConfigError, match="another BIDS dataset"):
        bids.jobs(bids.find(folder), folder, folder)


def test_what_is_said_about_a_fill_leads_to_its_sources(dataset, tmp_path):
    folder = dataset(SCAN, "derivatives/my masks/sub-01/anat/sub-01_label-lesion_mask.nii.gz")
    out = tmp_path / "my out"
    jobs = bids.jobs(bids.find(folder), folder, out)
    target = next(iter(jobs))
    target.parent.mkdir(parents=True)
    assert bids.describe(jobs, folder, out) == {}
    assert not target.with_name("sub-01_desc-inpainted_T1w.json").exists()  # nor does the fill
    target.touch()
    assert bids.describe(jobs, folder, out) == {}
    sidecar = json.loads(target.with_name("sub-01_desc-inpainted_T1w.json").read_text())
    assert sidecar["SkullStripped"] is True
    assert sidecar["Sources"] == [
        "bids:source:sub-01/anat/sub-01_T1w.nii.gz",
        "bids:source:derivatives/my%20masks/sub-01/anat/sub-01_label-lesion_mask.nii.gz",
    ]
    description = json.loads((out / cases.BIDS).read_text())
    assert (out / description["DatasetLinks"]["source"]).resolve() == folder
    assert bids.jobs(bids.find(folder), folder, out) == jobs


def test_what_cannot_be_described_is_told_and_what_is_there_already_is_left_alone(dataset, tmp_path, monkeypatch):
    folder, out = dataset(SCAN, MASK), tmp_path / "out"
    out.mkdir()

    def full(_path):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(bids, "atomic_write", full)
        assert "No space left on device" in bids.describe({}, folder, out)[cases.BIDS]
        assert not list(out.iterdir())
    assert bids.describe({}, folder, out) == {}
    before = (out / cases.BIDS).stat()
    assert bids.describe({}, folder, out) == {}
    assert (out / cases.BIDS).stat() == before
    assert not list(out.glob(f"{files.TEMPORARY}*"))


def test_other_commands_say_that_they_do_not_read_datasets(dataset):
    with pytest.raises(ConfigError, match="a BIDS dataset, which only infer, baseline and check read"):
        cases.find(dataset(SCAN, MASK))


@pytest.mark.parametrize("place", ["sub-01", "filled", "derivatives"])
def test_fills_do_not_go_among_the_scans_of_a_dataset(tmp_path, place):
    with pytest.raises(
        ConfigError, match=r"in the scans' dataset\n  Give a separate folder, such as derivatives/inpainted"
    ):
        bids.jobs([], tmp_path, tmp_path / place)
    assert bids.jobs([], tmp_path, tmp_path / "derivatives" / "inpainted") == {}
