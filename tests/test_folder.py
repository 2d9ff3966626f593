"""Many cases in one run: reading, filling and writing beside one another, and none of them harms another."""

import os
import resource
import subprocess
import sys
import threading
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from brats_inpainting.config import DiffusionConfig, SamplingConfig
from brats_inpainting.data import cases
from brats_inpainting.errors import ConfigError
from brats_inpainting.folder import Run
from brats_inpainting.infer import LPS

from .conftest import inpainter, write_case


class Noted(Run):
    """A run that notes what happens, and in which thread."""

    def _prepare(self, case):
        scan = super()._prepare(case)
        self.__dict__.setdefault("notes", []).append(("read", case.id, threading.current_thread()))
        return scan

    def _deliver(self, stack, *others):
        super()._deliver(stack, *others)
        self.notes.append(("written", stack.scan.id, threading.current_thread()))


def run_of(folder, kind=Run, **settings):
    jobs = {folder / "out" / cases.output_name(case.id): case for case in cases.find(folder / "data")}
    run = kind(inpainter(**settings), jobs, report_path=folder / "report", quiet=True)
    run.start("error")
    run.go()
    return run


def test_the_next_case_is_read_while_one_is_filled_and_files_are_written_beside(tmp_path):
    for number in range(4):
        write_case(tmp_path / "data", f"case-{number}", seed=number)
    notes = run_of(tmp_path, Noted).notes
    order = [(what, case_id) for what, case_id, _ in notes]
    assert order.index(("read", "case-1")) < order.index(("written", "case-0"))
    assert [case_id for what, case_id in order if what == "written"] == [f"case-{number}" for number in range(4)]
    readers, writers = ({thread for what, _, thread in notes if what == name} for name in ("read", "written"))
    assert len(readers) == len(writers) == 1
    assert not {threading.main_thread()} & (readers | writers)


def test_a_case_whose_name_is_a_pattern_leaves_the_maps_of_others_alone(tmp_path):
    for case_id in ("case-1", "case-[1]", "case-*"):
        write_case(tmp_path / "data", case_id)
    run_of(tmp_path, samples=2)
    for case_id in ("case-1", "case-[1]", "case-*"):
        assert (tmp_path / "report" / f"{case_id}-t1n-inference-std.nii.gz").exists()


def test_a_case_too_large_for_the_memory_fails_alone(tmp_path, tiny_weights):
    write_case(tmp_path / "data", "small")
    large, volume_XYZ = tmp_path / "data" / "large", np.zeros((500, 500, 500), np.uint8)
    large.mkdir()
    for name, half in (("t1n-voided", 100), ("mask", 20)):
        volume_XYZ[:] = 0
        volume_XYZ[250 - half : 250 + half, 250 - half : 250 + half, 250 - half : 250 + half] = 1
        nib.save(nib.Nifti1Image(volume_XYZ, LPS), large / f"large-{name}.nii.gz")
    places = ["--data-path", tmp_path / "data", "--output-path", tmp_path / "out", "--weights", tiny_weights]
    limit = 3 * 2**30  # bytes of address space; torch alone takes more than half of it
    done = subprocess.run(
        [sys.executable, "-m", "brats_inpainting", "infer", *map(str, places)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
        check=False,
    )
    assert done.returncode == 3, done.stderr
    assert "not enough memory" in done.stderr.partition("1 failed:")[2]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["small-t1n-inference.nii.gz"]


# for everything that fills depend on, another value than that of ``inpainter()``
SAMPLING = {
    "sampler": "heun",
    "steps": 3,
    "spacing": "trailing",
    "samples": 2,
    "noise": "shared",
    "smoothing": 0.5,
    "dilate": 1.0,
    "replace": "slices",
}
OTHER = {"weights": {"sha256": "1" * 64}, "diffusion": {"diffusion": DiffusionConfig()}}
OTHER |= {"precision": "bf16", "seed": 1, "keep_dtype": True}


def test_every_setting_of_a_fill_is_compared():
    assert {*SAMPLING} == {*SamplingConfig.model_fields}
    assert {"sampling", *OTHER} == {*Run(inpainter(), {}).settings()}


@pytest.mark.parametrize("name", [*SAMPLING, *OTHER])
def test_a_fill_is_not_resumed_with_another(name, tmp_path):
    case = cases.find(write_case(tmp_path / "data", "a").parent)[0]
    jobs = {tmp_path / cases.output_name("a"): case}
    before = Run(inpainter(), jobs, report_path=tmp_path / "report", quiet=True)
    before.start("error")
    before.reports = {"a": {"output": cases.output_name("a")}}
    before.record()
    next(iter(jobs)).touch()
    again = replace(before, inpainter=inpainter(**{name: SAMPLING[name]} if name in SAMPLING else {}), jobs=dict(jobs))
    if name in ("weights", "diffusion"):
        again.inpainter.weights = replace(again.inpainter.weights, **OTHER[name])
    elif name in OTHER:
        setattr(again.inpainter if name == "precision" else again, name, OTHER[name])
    with pytest.raises(ConfigError, match=f"made with another {'sampling' if name in SAMPLING else name}\n"):
        again.start("resume")
    same = replace(before, inpainter=inpainter(), jobs=dict(jobs))
    same.start("resume")
    assert not same.jobs
