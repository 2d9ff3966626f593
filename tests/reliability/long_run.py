"""Fill many small cases in one process, one in ten of them invalid: memory and open files must not grow.

usage: python -m tests.reliability.long_run [COUNT]

COUNT cases (default 200). Resident memory in MB and open files are measured after every case. The slope is that of a
linear fit to the second half, when caches are full.
"""

import os
import sys
import tempfile
from pathlib import Path
from unittest import mock

import nibabel as nib
import numpy as np
import torch

from brats_inpainting import fill, runtime
from brats_inpainting.fill import Options
from brats_inpainting.layouts import CaseFolder

from ..conftest import inpainter, lesion, write_case

SMALL, LARGE = (48, 48, 8), (240, 240, 155)  # one in twenty has the size of BraTS scans, and a small lesion
BAD = 10  # one case in this many is invalid


def measuring(notes, function):
    """Wrap a function to append this process's memory in MB and its open files to ``notes``."""

    def call(*args):
        function(*args)
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
        notes.append((resident, len(list(Path("/proc/self/fd").iterdir()))))

    return call


def damage(folder, number):
    """Make a case invalid, in one of four ways."""
    path = folder / f"{folder.name}-{('t1n-voided', 'mask')[number % 2]}.nii.gz"
    kind = number // 2 % 2
    path.write_bytes(path.read_bytes()[:-50]) if kind else path.unlink()


def run(count, folder):
    """Fill the cases; return the record, memory and open files after each, and the slope in MB per 100 cases."""
    for number in range(count):
        shape, radius = (SMALL, 0.15) if number % 20 else (LARGE, 0.03)
        mask = lesion(shape, radius=radius)
        case = write_case(folder / "data", f"case-{number:03d}", shape=shape, mask=mask, seed=number)
        if number % BAD == BAD // 2:
            damage(case, number // BAD)
    out = folder / "out"
    layout, options, notes = CaseFolder(folder / "data"), Options(report_path=folder / "report"), []
    patched = {name: measuring(notes, getattr(fill, name)) for name in ("report_done", "report_failed")}
    with mock.patch.multiple(fill, **patched):
        record = fill.fill_folder(inpainter(), layout, out, options=options, quiet=True)
    assert len(record.failed) == count // BAD
    assert len(list(out.iterdir())) == count - count // BAD
    for target, case in layout.jobs(out).items():
        if case.id not in record.failed:
            given, made, mask = (nib.load(path).get_fdata() for path in (case.image, target, case.mask))
            assert (given == made)[mask == 0].all()
            assert np.isfinite(made).all()
            assert made[mask > 0].any()
    resident = np.array([note[0] for note in notes])[len(notes) // 2 :]
    return record, notes, 100 * np.polyfit(np.arange(len(resident)), resident, 1)[0]


def main():
    runtime.settle()  # as the command line does
    torch.set_num_threads(1)
    count = int(sys.argv[1]) if sys.argv[1:] else 200
    with tempfile.TemporaryDirectory() as folder:
        record, notes, slope = run(count, Path(folder))
    memory, files = zip(*notes, strict=True)
    print(f"{count} cases, {len(record.failed)} bad and refused, {count - len(record.failed)} right results")
    print(
        f"memory {memory[count // 2]:.0f} MB after half, {memory[-1]:.0f} MB at the end, {slope:+.2f} MB per 100 cases"
    )
    print(f"open files {min(files)} to {max(files)}")


if __name__ == "__main__":
    main()
