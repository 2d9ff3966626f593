"""BIDS: which mask belongs to which scan, as their names say, and what is written about the fills."""

import json

import nibabel as nib
import numpy as np
import pytest

from brats_inpainting import files, layouts
from brats_inpainting.data import bids, cases
from brats_inpainting.data.lesion import MaskReading
from brats_inpainting.errors import CaseError, ConfigError

MASK = "sub-01/anat/sub-01_label-lesion_roi.nii.gz"
SCAN = "sub-01/anat/sub-01_T1w.nii.gz"


BRAIN = "sub-01/anat/sub-01_desc-brain_mask.nii.gz"
MANUAL = "derivatives/manual/sub-01/anat/sub-01_desc-manual_mask"


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
        (SCAN, "sub-01/anat/sub-01_T1w_label-lesion_roi.nii.gz"),  # fMRIPrep's documentation
        (SCAN, "derivatives/lst/sub-01/anat/sub-01_space-flair_seg-lst.nii.gz"),  # LST-AI
        (SCAN, "derivatives/manual/sub-01/anat/sub-01_desc-lesion_dseg.nii.gz"),
        (SCAN, "derivatives/manual/sub-01/anat/sub-01_label-lesion2_mask.nii.gz"),
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
        "sub-01/anat/sub-01_desc-perilesional_mask.nii.gz",
        "sub-01/anat/sub-01_desc-annotated_label-lesion_mask.nii.gz",
        "sub-01/anat/sub-01_FLAIR_label-lesion_roi.nii.gz",
        "sub-01/anat/sub-01_dseg.nii.gz",
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


def test_lesion_masks_are_found_by_the_type_in_their_sidecars(dataset):
    folder = dataset(SCAN, f"{MANUAL}.nii.gz", BRAIN)
    (folder / f"{MANUAL}.json").write_text('{"Type": "Brain"}')
    with pytest.raises(ConfigError, match="none of 1"):
        bids.find(folder)
    (folder / f"{MANUAL}.json").write_text('{"Type": "Lesion"}')
    assert [case.mask for case in bids.find(folder)] == [folder / f"{MANUAL}.nii.gz"]


def test_a_sidecar_holds_for_the_masks_below_it_but_never_for_a_brain_mask(dataset):
    folder = dataset(SCAN, f"{MANUAL}.nii.gz", BRAIN)
    (folder / "derivatives/manual/desc-manual_mask.json").write_text('{"Type": "Lesion"}')
    (folder / "mask.json").write_text('{"Type": "Lesion"}')
    (case,) = bids.find(folder)
    assert (case.mask, case.brain) == (folder / f"{MANUAL}.nii.gz", folder / BRAIN)


@pytest.mark.parametrize("content", ["", "[", "[1]", '{"Type": 3}', "[" * 100000])
def test_a_sidecar_that_says_nothing_is_ignored(dataset, content):
    folder = dataset(SCAN, f"{MANUAL}.nii.gz")
    (folder / f"{MANUAL}.json").write_text(content)
    with pytest.raises(ConfigError, match=r"Not recognized:\n    derivatives/manual/.*desc-manual_mask\.nii\.gz; if"):
        bids.find(folder)


def test_a_mask_named_lesion_is_preferred_to_a_segmentation_and_to_a_sidecar(dataset):
    segmentation = "derivatives/manual/sub-01/anat/sub-01_desc-lesion_dseg.nii.gz"
    folder = dataset(SCAN, MASK, segmentation, f"{MANUAL}.nii.gz")
    (folder / f"{MANUAL}.json").write_text('{"Type": "Lesion"}')
    assert [case.mask for case in bids.find(folder)] == [folder / MASK]
    (folder / MASK).unlink()
    assert [case.mask for case in bids.find(folder)] == [folder / segmentation]


TABLE = "index\tname\n0\tno lesion\n1\tEdema\n2\tT2 lesion\n3\tperilesional\n4\tperi-lesion\n7\tLesions\n"


@pytest.mark.parametrize("place", ["sub-01/anat/sub-01_desc-lesion_dseg.tsv", "desc-lesion_dseg.tsv", "dseg.tsv"])
def test_the_table_of_a_segmentation_says_which_labels_are_lesions(dataset, place):
    folder = dataset(SCAN, "sub-01/anat/sub-01_desc-lesion_dseg.nii.gz")
    (folder / place).write_text(TABLE, encoding="utf-8-sig")
    (case,) = bids.find(folder)
    assert case.reading == MaskReading(labels=(2, 7))
    assert layouts.BidsDataset(folder).cases == [case]
    chosen = MaskReading(labels=(1,))
    assert [case.reading for case in layouts.BidsDataset(folder, reading=chosen).cases] == [chosen]


@pytest.mark.parametrize("content", ["1 lesion\n", "index\tname\none\tlesion\n", "index\tname\n1\n", b"\xff\xfe\0"])
def test_a_table_that_cannot_be_read_fails_its_case_only(dataset, content):
    folder = dataset(SCAN, "sub-01/anat/sub-01_desc-lesion_dseg.nii.gz")
    content = content if isinstance(content, bytes) else content.encode()
    (folder / "sub-01/anat/sub-01_desc-lesion_dseg.tsv").write_bytes(content)
    (case,) = bids.find(folder)
    with pytest.raises(CaseError, match=r"_dseg\.tsv: not a table of labels .*\n  Give it columns index and name"):
        cases.load(case)


def test_numbered_masks_of_one_scan_are_joined(dataset):
    names = [f"derivatives/m/sub-01/anat/sub-01_label-lesion{number}_mask.nii.gz" for number in (1, 2, 3)]
    folder = dataset(SCAN, *names)
    (case,) = bids.find(folder)
    assert [case.mask, *case.more_masks] == [folder / name for name in names]


@pytest.mark.parametrize(
    "second",
    [
        "derivatives/m/sub-01/anat/sub-01_label-lesion_mask.nii.gz",  # probably the union
        "derivatives/m/sub-01/anat/sub-01_label-lesion2_desc-other_mask.nii.gz",
        "derivatives/n/sub-01/anat/sub-01_label-lesion2_mask.nii.gz",
        "derivatives/m/sub-01/anat/sub-01_label-lesion1_mask.nii",
    ],
)
def test_masks_that_differ_in_more_than_their_number_are_not_joined(dataset, second):
    with pytest.raises(ConfigError, match="more than one lesion mask"):
        bids.find(dataset(SCAN, "derivatives/m/sub-01/anat/sub-01_label-lesion1_mask.nii.gz", second))


def test_at_most_five_near_misses_are_named_with_the_names_they_need(dataset):
    names = [
        f"sub-01/anat/{name}.nii.gz" for name in ("sub-01_T1w-mask", "sub-01_lesion", "roi", "seg", "tumor", "les")
    ]
    with pytest.raises(ConfigError) as error:
        bids.find(dataset(SCAN, *names, BRAIN, "sub-01/anat/sub-01_lesion.json"))
    text = str(error.value)
    assert (
        "sub-01/anat/sub-01_lesion.nii.gz; if it is the lesion, rename it to sub-01/anat/sub-01_label-lesion_m" in text
    )
    assert text.count("if it is the lesion") == 5
    assert "desc-brain" not in text
    assert "json; " not in text


def test_scans_without_a_mask_but_with_a_near_miss_get_a_warning_each(dataset, caplog):
    scans = [SCAN.replace("01", f"les{number}") for number in range(8)]
    near = [scan.replace("_T1w.nii.gz", "-lesion.nrrd") for scan in scans]
    folder = dataset(SCAN, MASK, *scans, *near[:7], "sub-les0/les.nii")
    assert [case.id for case in bids.find(folder)] == ["sub-01"]
    lines = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(lines) == 5
    assert lines[0] == (
        "sub-les0: no lesion mask. Not recognized: sub-les0/anat/sub-les0-lesion.nrrd; if it is the lesion, "
        "convert it to sub-les0/anat/sub-les0_label-lesion_mask.nii.gz"
    )


def test_the_files_of_fmriprep_are_no_near_misses_of_scans_without_a_lesion(dataset, caplog):
    ends = ("desc-brain_mask", "dseg", "desc-aseg_dseg", "label-GM_probseg", "space-X_desc-brain_mask", "desc-x_T1w")
    control = [f"derivatives/fmriprep/sub-les1/anat/sub-les1_{end}.nii.gz" for end in ends]
    assert len(bids.find(dataset(SCAN, MASK, SCAN.replace("01", "les1"), *control))) == 1
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_brain_masks_belong_to_scans_of_their_space(dataset, caplog):
    derived = [f"derivatives/{name}/{BRAIN}" for name in ("b", "a")]
    template = BRAIN.replace("_desc", "_space-MNI152NLin6Asym_desc")
    folder = dataset(SCAN, MASK, template, BRAIN.replace("_desc", "_run-2_desc"))
    assert [case.brain for case in bids.find(folder)] == [None]
    dataset(*derived)
    assert [case.brain for case in bids.find(folder)] == [folder / derived[1]]
    assert f"sub-01: 2 brain masks; {folder / derived[1]} is used" in caplog.text
    caplog.clear()
    dataset(BRAIN)
    assert [case.brain for case in bids.find(folder)] == [folder / BRAIN]
    assert not caplog.text
    assert [case.mask for case in bids.find(folder)] == [folder / MASK]


def test_a_scan_in_a_template_space_needs_a_brain_mask_in_that_space(dataset):
    scan, mask = (BRAIN.replace("_desc-brain_mask", f"_space-X_{end}") for end in ("T1w", "label-lesion_mask"))
    folder = dataset(scan, mask, BRAIN.replace("_desc", "_space-X_desc"))
    assert [case.brain.name for case in bids.find(folder)] == ["sub-01_space-X_desc-brain_mask.nii.gz"]


def test_a_scan_that_is_skull_stripped_gets_no_brain_mask(dataset):
    folder = dataset(SCAN, MASK, BRAIN)
    assert bids.find(folder)[0].brain
    (folder / "T1w.json").write_text('{"SkullStripped": true}')
    assert not bids.find(folder)[0].brain
    (folder / "T1w.json").unlink()
    (folder / SCAN).rename(folder / SCAN.replace("_T1w", "_desc-brain_T1w"))
    assert not bids.find(folder)[0].brain


def test_a_brain_mask_on_another_grid_is_used(dataset):
    folder = dataset(SCAN, MASK, BRAIN)
    for path, affine in ((SCAN, np.eye(4)), (BRAIN, np.diag([-1.0, 1, 1, 1]))):
        nib.save(nib.Nifti1Image(np.ones((4, 4, 4), np.uint8), affine), folder / path)
    assert bids.find(folder)[0].brain == folder / BRAIN


@pytest.mark.parametrize("path", [SCAN, MASK, BRAIN])
def test_a_file_whose_content_is_not_fetched_stays_listed_and_its_case_fails_by_name(dataset, path):
    folder = dataset(SCAN, MASK, BRAIN)
    for name in (SCAN, MASK, BRAIN):
        nib.save(nib.Nifti1Image(np.arange(64, dtype=np.float32).reshape(4, 4, 4) % 2, np.eye(4)), folder / name)
    (folder / path).unlink()
    (folder / path).symlink_to("../../.git/annex/objects/Xx/Yy/MD5E-s1--ab.nii.gz/MD5E-s1--ab.nii.gz")
    (case,) = bids.find(folder)
    assert case.files == (folder / SCAN, folder / MASK, folder / BRAIN)
    with pytest.raises(CaseError, match=(folder / path).name):
        cases.load(case)


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


def test_the_sidecar_of_a_whole_head_names_its_brain_mask_and_all_lesion_masks(dataset, tmp_path):
    masks = [f"sub-01/anat/sub-01_label-lesion{number}_mask.nii.gz" for number in (1, 2)]
    folder = dataset(SCAN, *masks, BRAIN)
    (target,) = jobs = bids.jobs(bids.find(folder), folder, tmp_path / "out")
    target.parent.mkdir(parents=True)
    target.touch()
    bids.describe(jobs, folder, tmp_path / "out")
    sidecar = json.loads(target.with_name("sub-01_desc-inpainted_T1w.json").read_text())
    assert sidecar["SkullStripped"] is False
    assert sidecar["Sources"] == [f"bids:source:{name}" for name in (SCAN, *masks, BRAIN)]


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
