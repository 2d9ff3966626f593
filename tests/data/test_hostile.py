"""Files of the worst kind: each is refused in words or read as what it is, in little memory, and touches nothing."""

import gzip
import os
import resource
import subprocess
import sys
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.nifti1 import Nifti1Header

from brats_inpainting.data import cases, nifti
from brats_inpainting.data.cases import Case
from brats_inpainting.data.nifti import LPS
from brats_inpainting.errors import CaseError, ConfigError

from ..conftest import brain, lesion, write_case

SHAPE = (16, 16, 8)
GB = 2**30
LIMIT = 1.5 * GB  # address space of a `check`: Python, NumPy, SciPy and nibabel take 0.5 GB of it, without any case


def image_of(folder):
    return folder / f"{folder.name}-t1n-voided.nii.gz"


def mask_of(folder):
    return folder / f"{folder.name}-mask.nii.gz"


def header_of(folder, **fields):
    """Change fields of the image's header, whatever they mean."""
    raw = gzip.decompress(image_of(folder).read_bytes())
    header = Nifti1Header(raw[:348], check=False)
    for name, value in fields.items():
        header.structarr[name] = value
    image_of(folder).write_bytes(gzip.compress(header.binaryblock + raw[348:]))


def extension_of(folder, said, *, offset=384, tail=b""):
    """Put an extension before the voxels that says it is ``said`` bytes long; 32 are there."""
    raw = gzip.decompress(image_of(folder).read_bytes())
    header = Nifti1Header(raw[:348], check=False)
    header.structarr["vox_offset"] = offset
    extension = np.array([said, 6], "<i4").tobytes() + b"comment".ljust(24, b"\0")
    start = header.binaryblock + b"\1\0\0\0" + extension + raw[352:]
    image_of(folder).write_bytes(bomb(start, 4) if tail == "bomb" else gzip.compress(start))


def bomb(start, gigabytes):
    """Return a small gzip file that unpacks to some bytes and then gigabytes of zeros."""
    packer = zlib.compressobj(9, wbits=-15)
    begin = packer.compress(start) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(2**24)) + packer.flush(zlib.Z_FULL_FLUSH)
    return gzip.compress(b"")[:10] + begin + block * (gigabytes * GB // 2**24)


def huge(folder):
    """Fill a volume of the largest size that is let in with zeros, honestly."""
    header = Nifti1Header()
    header.set_data_shape((512, 512, 512))
    header.set_data_dtype(np.float64)
    header["vox_offset"] = 352
    image_of(folder).write_bytes(bomb(header.binaryblock + bytes(4), 2))


def swapped(folder):
    image = nib.load(image_of(folder))
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), LPS, image.header.as_byteswapped(">")), image_of(folder))


def second_version(folder):
    nib.save(nib.Nifti2Image(np.asarray(nib.load(image_of(folder)).dataobj), LPS), image_of(folder))


def cifti(folder):
    second_version(folder)
    raw = bytearray(gzip.decompress(image_of(folder).read_bytes()))
    raw[504:508] = (3006).to_bytes(4, "little")  # the intent of a CIFTI file, which holds XML
    image_of(folder).write_bytes(gzip.compress(bytes(raw)))


def pair_in_disguise(folder):
    """Give the header of a .hdr/.img pair the name of a single file."""
    nib.save(nib.Nifti1Pair(brain(SHAPE), LPS), folder / "pair.img")
    image_of(folder).write_bytes(gzip.compress((folder / "pair.hdr").read_bytes() + bytes(8192)))


def analyze_in_disguise(folder):
    nib.save(nib.AnalyzeImage(brain(SHAPE), LPS), folder / "old.img")
    image_of(folder).write_bytes(gzip.compress((folder / "old.hdr").read_bytes() + bytes(8192)))


def pipe(folder):
    mask_of(folder).unlink()
    os.mkfifo(mask_of(folder))


def folder_named_like_a_file(folder):
    mask_of(folder).unlink()
    mask_of(folder).mkdir()


def loop(folder):
    mask_of(folder).unlink()
    mask_of(folder).symlink_to(mask_of(folder).name)
    (folder / "deeper").symlink_to("..")


# what is done to a sound case, and the words it is refused with; none where it can be filled all the same
HOSTILE = {
    "terabytes": (lambda f: header_of(f, dim=[3, 30000, 30000, 30000, 1, 1, 1, 1]), "more than 134,217,728. Crop it"),
    "negative-dimension": (lambda f: header_of(f, dim=[3, -16, 16, 8, 1, 1, 1, 1]), "-16×16×8 voxels, but one 3D"),
    "no-dimensions": (lambda f: header_of(f, dim=0), "voxels, but one 3D volume is needed"),
    "eight-dimensions": (lambda f: header_of(f, dim=8), "or damaged"),
    "nan-voxel-size": (lambda f: header_of(f, pixdim=np.nan, sform_code=0), "affine does not span three dimensions"),
    "nan-affine": (lambda f: header_of(f, srow_x=np.nan), "affine does not span three dimensions"),
    "flat-affine": (lambda f: header_of(f, srow_x=0), "affine does not span three dimensions"),
    "infinite-rotation": (lambda f: header_of(f, quatern_b=np.inf, sform_code=0, qform_code=1), "or damaged"),
    "negative-voxel-size": (lambda f: header_of(f, pixdim=[1, -1, -1, -1, 0, 0, 0, 0]), None),
    "slope-0": (lambda f: header_of(f, scl_slope=0), None),
    "slope-nan": (lambda f: header_of(f, scl_slope=np.nan), None),
    "slope-infinite": (lambda f: header_of(f, scl_slope=np.inf), None),
    "slope-beyond-float32": (lambda f: header_of(f, scl_slope=3e38), "NaN or infinite voxels"),
    "intercept-infinite": (lambda f: header_of(f, scl_slope=1, scl_inter=np.inf), "or damaged"),
    "type-unknown": (lambda f: header_of(f, datatype=9999), "or damaged"),
    "type-complex": (lambda f: header_of(f, datatype=32), "voxels of type complex64"),
    "offset-infinite": (lambda f: header_of(f, vox_offset=np.inf), "or damaged"),
    "offset-negative": (lambda f: header_of(f, vox_offset=-500), "its header puts the voxels at byte -500"),
    "offset-of-terabytes": (lambda f: header_of(f, vox_offset=1e13), "its header puts the voxels at byte 9,999,999,"),
    "extension-sound": (lambda f: extension_of(f, 32), None),
    "extension-odd": (lambda f: extension_of(f, 31), None),
    "extension-too-long": (lambda f: extension_of(f, 2**31 - 1), "a header extension of 2,147,483,647 bytes"),
    "extension-negative": (lambda f: extension_of(f, -1), "a header extension of -1 bytes"),
    "extension-to-the-end": (lambda f: extension_of(f, 7, tail="bomb"), "a header extension of 7 bytes"),  # 7 - 8 = -1
    "extension-zero": (lambda f: extension_of(f, 0), "a header extension of 0 bytes"),
    "bomb-behind-the-voxels": (lambda f: extension_of(f, 32, tail="bomb"), None),
    "bomb-of-voxels": (huge, "not enough memory to read it"),
    "byte-swapped": (swapped, None),
    "nifti-2": (second_version, None),
    "cifti": (cifti, None),  # read as the plain NIfTI-2 that it is; its XML is never looked at
    "pair-in-disguise": (
        pair_in_disguise,
        "the header of a .hdr/.img pair. Convert the pair with fslchfiletype NIFTI_GZ",
    ),
    "analyze-in-disguise": (analyze_in_disguise, "not a NIfTI file (.nii or .nii.gz), or damaged"),
    "pipe": (pipe, "a folder, a pipe or a device, not a file"),
    "folder-named-like-a-file": (folder_named_like_a_file, "a folder, a pipe or a device, not a file"),
    "symlink-loop": (loop, "a link to symlink-loop-mask.nii.gz, which does not exist"),
    "name-with\nnewline": (lambda _: None, "characters that cannot be printed"),
    "name-with-\x1b[2Jescape": (lambda _: None, "characters that cannot be printed"),
    "name-\udcff-not-unicode": (lambda _: None, "characters that cannot be printed"),
    "name-with-'quotes\"-$(touch x)-&;": (lambda _: None, None),
    "name-Größe-脳-🧠": (lambda _: None, None),
    "long-" + "n" * (255 - len("long--t1n-voided.nii.gz")): (lambda _: None, "Shorten it by 12 bytes"),
}
REFUSED = {name for name, (_, words) in HOSTILE.items() if words}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder of all hostile cases and a sound one; pipes and loops make it unfit for a copy."""
    folder = tmp_path_factory.mktemp("hostile") / "data"
    write_case(folder, "sound", shape=SHAPE)
    for case_id, (spoil, _) in HOSTILE.items():
        spoil(write_case(folder, case_id, shape=SHAPE))
    return folder


def run(*args, limit=resource.RLIM_INFINITY):
    """Run the command line in a process of its own, within an address space."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPROFILEIMPORTTIME": "1"}
    return subprocess.run(
        [sys.executable, "-m", "brats_inpainting", *map(str, args)],
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=120,
        env=environment,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (int(limit), int(limit))),
        check=False,
    )


def snapshot(root):
    """Everything below a folder: kind, size and time of last change."""
    return {path: (s.st_mode, s.st_size, s.st_mtime_ns) for path in root.rglob("*") for s in [path.lstat()]}


def test_check_refuses_each_of_them_in_words_within_a_limit_of_memory_and_without_the_network(data):
    before = snapshot(data.parent)
    told = run("check", "--data-path", data, limit=LIMIT)
    assert told.returncode == 3, told.stderr[-3000:]
    assert f"{len(HOSTILE) + 1 - len(REFUSED)} of {len(HOSTILE) + 1} cases can be filled" in told.stdout
    failures = told.stderr.split(f"{len(REFUSED)} failed:\n")[1].replace("\n  ", "  ").splitlines()
    for case_id in REFUSED:
        shown = case_id if case_id.isprintable() else ascii(case_id)[1:-1]
        assert any(line.startswith(f"{shown}: ") and HOSTILE[case_id][1] in line for line in failures), case_id
    imported = {line.rpartition("|")[2].strip() for line in told.stderr.splitlines()}
    assert "nibabel" in imported
    assert "torch" not in imported
    assert snapshot(data.parent) == before


def test_infer_fills_what_can_be_filled_and_touches_nothing_else(data, tmp_path, tiny_weights):
    (data / "bomb-of-voxels").rename(tmp_path / "away")  # takes its seconds, and check has shown what becomes of it
    before = snapshot(data)
    folders = ("--data-path", data, "--output-path", tmp_path / "out", "--report-path", tmp_path / "report")
    told = run("infer", *folders, "--weights", tiny_weights, "--steps", 1, "--device", "cpu", "--no-images")
    after = snapshot(data)
    (tmp_path / "away").rename(data / "bomb-of-voxels")
    assert after == before
    assert told.returncode == 3, told.stderr[-3000:]
    filled = {path.name.removesuffix("-t1n-inference.nii.gz") for path in (tmp_path / "out").iterdir()}
    assert filled == {"sound", *HOSTILE} - REFUSED
    assert {path.parent for path in tmp_path.rglob("*") if path.is_file()} == {tmp_path / "out", tmp_path / "report"}
    sound = [
        nib.load(tmp_path / "out" / f"{name}-t1n-inference.nii.gz") for name in ("sound", "byte-swapped", "nifti-2")
    ]
    voxels = [np.asarray(image.dataobj) for image in sound]
    assert (voxels[0] == voxels[1]).all()
    assert (voxels[0] == voxels[2]).all()


@pytest.mark.parametrize("kind", ["t1n-voided", "mask"])
def test_a_gzip_file_cut_at_any_byte_is_a_case_error(tmp_path, kind):
    folder = write_case(tmp_path, "a", shape=(8, 8, 4))
    path = folder / f"a-{kind}.nii.gz"
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CaseError, match=r"truncated|damaged|NIfTI"):
            cases.load(Case("a", image_of(folder), mask_of(folder)))


def test_a_gzip_file_with_a_bit_flipped_is_never_read_as_something_else(tmp_path):
    folder = write_case(tmp_path, "a", shape=(8, 8, 4))
    whole = mask_of(folder).read_bytes()
    for byte in range(10, len(whole)):  # ten bytes of gzip's own header, which hold a time and the like
        mask_of(folder).write_bytes(whole[:byte] + bytes([whole[byte] ^ 4]) + whole[byte + 1 :])
        try:
            loaded = cases.load(Case("a", image_of(folder), mask_of(folder)))
        except CaseError:
            continue
        assert (loaded.mask_XYZ == lesion((8, 8, 4))).all()  # a bit of padding that stands for nothing


@pytest.mark.parametrize("suffix", ["img", "mgz", "mnc", "nii.bz2", "txt"])
def test_other_formats_are_refused_by_their_content(tmp_path, suffix):
    nib.save(nib.Nifti1Pair(brain(SHAPE), LPS), tmp_path / "x.img")
    path = (tmp_path / "x.img").rename(tmp_path / f"x.{suffix}")
    with pytest.raises(CaseError, match=r"not a NIfTI file \(.nii or .nii.gz\), or damaged"):
        nifti.read(path)


def test_the_header_of_a_pair_is_refused_with_how_to_convert_it(tmp_path):
    nib.save(nib.Nifti1Pair(brain(SHAPE), LPS), tmp_path / "x.img")
    with pytest.raises(CaseError, match=r"x.hdr: the header of a .hdr/.img pair. .* fslchfiletype NIFTI_GZ"):
        nifti.read(tmp_path / "x.hdr")


def test_a_file_that_vanishes_after_its_header_was_read_is_a_case_error(tmp_path):
    folder = write_case(tmp_path, "a", shape=SHAPE)
    image = nifti.read(image_of(folder))
    image_of(folder).unlink()
    for look in (nifti.values, nifti.unscaled):
        with pytest.raises(CaseError, match=r"a-t1n-voided.nii.gz: its voxels can no longer be read"):
            look(image)


def found_by_a_stranger(folder, unreadable):
    """Return what a user without rights is told who looks for cases in a folder, of which a part must not be read."""
    script = f"""
import os
from pathlib import Path
from brats_inpainting.data import cases
os.getuid() or (os.setgroups([]), os.setgid(65534), os.setuid(65534))
for case in cases.find(Path({str(folder)!r})):
    cases.load(case)
    print(case.id)
"""
    for parent in folder.parents:
        if parent.stat().st_mode & 0o001 == 0:
            parent.chmod(parent.stat().st_mode | 0o001)
    unreadable.chmod(0)
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    unreadable.chmod(0o755)
    return told


def test_a_folder_that_must_not_be_read_is_named(tmp_path):
    data = write_case(tmp_path / "data", "a", shape=SHAPE).parent
    told = found_by_a_stranger(data, data)
    assert f"ConfigError: {data}: cannot be read (Permission denied)" in told.stderr


def test_a_case_that_must_not_be_read_fails_by_name(tmp_path):
    data = write_case(tmp_path / "data", "a", shape=SHAPE).parent
    told = found_by_a_stranger(data, write_case(data, "b", shape=SHAPE))
    assert told.stdout == "a\n"
    assert "CaseError: b: cannot be read\n  b-t1n-voided.nii.gz: " in told.stderr
    assert "Permission denied" in told.stderr


def test_the_folder_of_a_file_system_is_no_case(tmp_path):
    data = write_case(tmp_path / "data", "a", shape=SHAPE).parent
    (data / "lost+found").mkdir()
    assert found_by_a_stranger(data, data / "lost+found").stdout == "a\n"


def test_a_folder_of_pictures_is_no_folder_of_cases(tmp_path):
    Path(tmp_path / "line\nbreak.png").touch()
    with pytest.raises(ConfigError, match=r"Found: line\\nbreak.png"):
        cases.find(tmp_path)


def test_the_mask_of_a_lesion_is_what_the_tests_above_spoil(tmp_path):
    assert (
        cases.load(cases.find(write_case(tmp_path, "a", shape=SHAPE).parent)[0]).mask_XYZ.sum() == lesion(SHAPE).sum()
    )
