"""The cache of training slices: made once, taken up again, made anew when its inputs change, refused when too large."""

import os
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from brats_inpainting.data import cache
from brats_inpainting.data.cache import LEVELS, TrainingCase
from brats_inpainting.data.transforms import Frame, Intensity
from brats_inpainting.errors import CaseError, ConfigError

from ..conftest import LPS, brain, lesion

SHAPE = (72, 80, 10)


@pytest.fixture
def scans(tmp_path):
    folder = tmp_path / "scans"
    for number in range(2):
        case = folder / f"BraTS-GLI-0000{number}-000"
        case.mkdir(parents=True)
        volumes = {
            "t1n": brain(SHAPE, number),
            "mask-healthy": lesion(SHAPE, centre=(0.4, 0.4, 0.5)).astype(np.uint8),
            "mask-unhealthy": lesion(SHAPE, centre=(0.7, 0.6, 0.5), radius=0.1).astype(np.uint8),
        }
        for name, volume in volumes.items():
            nib.save(nib.Nifti1Image(volume, LPS), case / f"{case.name}-{name}.nii.gz")
    return folder


def open_files():
    return len(list(Path("/proc/self/fd").iterdir()))


def times(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_slices_are_the_papers_preprocessing_to_a_65535th(scans, tmp_path):
    prepared = cache.prepare(cache.find(scans), tmp_path / "cache")[0]
    image = brain(SHAPE, 0)
    expected = Frame.around(image > 0).cut(Intensity.of(image).scale(image))
    np.testing.assert_allclose(prepared.image_SHW / LEVELS, expected, atol=0.5 / LEVELS + 1e-7)
    assert isinstance(prepared.image_SHW, np.memmap)


def test_the_healthy_mask_and_the_distance_to_the_tumour_are_kept(scans, tmp_path):
    prepared = cache.prepare(cache.find(scans), tmp_path / "cache")[0]
    frame = Frame.around(brain(SHAPE, 0) > 0)
    healthy, tumour = (
        frame.cut(lesion(SHAPE, centre=centre, radius=radius))
        for centre, radius in (((0.4, 0.4, 0.5), 0.15), ((0.7, 0.6, 0.5), 0.1))
    )
    planes = np.flatnonzero(healthy.any(axis=(1, 2)))
    assert prepared.healthy.planes == planes.tolist()
    for z in planes:
        np.testing.assert_array_equal(prepared.healthy.within((int(z), 0, 0), (1, *healthy.shape[1:]))[0], healthy[z])
    np.testing.assert_array_equal(prepared.distance_SHW == 0, tumour)


def test_training_scans_and_masks_are_turned_to_lps_and_cut_above_one_half(tmp_path):
    mask = lesion(SHAPE, centre=(0.4, 0.45, 0.5))
    soft = np.select([mask, lesion(SHAPE, (0.4, 0.45, 0.5), 0.2)], [1, 0.5]).astype(np.float32)
    made = []
    for axes in ("LPS", "SAR"):
        turn = nib.orientations.ornt_transform(*map(nib.orientations.axcodes2ornt, ("LPS", axes)))
        affine = LPS @ nib.orientations.inv_ornt_aff(turn, SHAPE)
        paths = [tmp_path / f"{axes}-{name}.nii.gz" for name in ("t1n", "mask-healthy", "mask-unhealthy")]
        for path, array in zip(paths, (brain(SHAPE), soft, soft), strict=True):
            nib.save(nib.Nifti1Image(nib.orientations.apply_orientation(array, turn), affine), path)
        files = TrainingCase(axes, *paths)
        cache._prepare(files, tmp_path / f"{axes}.npy")
        made.append(cache._open(files, tmp_path / f"{axes}.npy"))
    one, other = made
    assert one.box == other.box
    for scan in made:
        np.testing.assert_array_equal(scan.image_SHW, one.image_SHW)
        healthy_SHW = scan.healthy.within((0, 0, 0), one.image_SHW.shape)
        np.testing.assert_array_equal(healthy_SHW, Frame.around(brain(SHAPE) > 0).cut(mask))
        np.testing.assert_array_equal(scan.distance_SHW == 0, healthy_SHW)


def test_what_is_there_is_taken_and_what_is_missing_made(scans, tmp_path):
    folder = tmp_path / "cache"
    cache.prepare(cache.find(scans), folder)
    before = times(folder)
    lost = sorted(folder.glob("*.npy"))[1]
    lost.unlink()  # as if the first preparation had been interrupted
    assert [scan.id for scan in cache.prepare(cache.find(scans), folder)] == [
        "BraTS-GLI-00000-000",
        "BraTS-GLI-00001-000",
    ]
    after = times(folder)
    assert after.keys() == before.keys()
    assert after[lost.name] != before[lost.name]
    assert sum(after[name] != before[name] for name in before) == 2  # that case's two files


def test_a_changed_scan_is_prepared_anew_and_its_old_slices_removed(scans, tmp_path):
    folder = tmp_path / "cache"
    cache.prepare(cache.find(scans), folder)
    before = times(folder)
    os.utime(next(scans.rglob("*00001-000-t1n.nii.gz")), (1, 1))
    cache.prepare(cache.find(scans), folder)
    kept = times(folder).keys() & before.keys()
    assert len(times(folder)) == len(before) == 4
    assert {name[:15] for name in kept} == {"BraTS-GLI-00000"}


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(scans, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6, 0))
    with pytest.raises(ConfigError, match=r"take 0.0 GB, and 0.0 GB are free"):
        cache.prepare(cache.find(scans), tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_no_file_stays_open(scans, tmp_path):
    """A thousand scans would go beyond what a process may hold open."""
    prepared = cache.prepare(cache.find(scans), tmp_path / "cache")
    before = open_files()
    assert [scan.image_SHW.max() for scan in prepared * 3] == [LEVELS] * 6
    assert open_files() == before


def test_every_scan_that_cannot_be_used_is_named(scans, tmp_path):
    for path in scans.rglob("*-t1n.nii.gz"):
        nib.save(nib.Nifti1Image(np.ones(SHAPE, np.float32), LPS), path)
    with pytest.raises(CaseError, match=r"(?s)00000-000.*00001-000.*2 scans cannot be used"):
        cache.prepare(cache.find(scans), tmp_path / "cache")


def test_a_folder_without_complete_scans_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="t1n"):
        cache.find(tmp_path)


def test_time_points_of_one_person_are_one_subject(tmp_path):
    ids = ("BraTS-GLI-00007-000", "BraTS-GLI-00007-001", "BraTS-GLI-00008-000")
    assert len({TrainingCase(case_id, tmp_path, None, None).subject for case_id in ids}) == 2


def test_a_copy_of_the_data_is_the_same_data(scans, tmp_path):
    shutil.copytree(scans, tmp_path / "copy", copy_function=shutil.copy)
    assert cache.data_hash(cache.find(scans)) == cache.data_hash(cache.find(tmp_path / "copy"))
    next((tmp_path / "copy").rglob("*mask-healthy*")).unlink()
    assert cache.data_hash(cache.find(scans)) != cache.data_hash(cache.find(tmp_path / "copy"))
