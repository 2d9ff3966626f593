"""Many cases in one run: reading, filling and writing beside one another, and none of them harms another."""

import json
import os
import resource
import subprocess
import sys
import threading
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from brats_inpainting.baselines import Baseline
from brats_inpainting.config import DiffusionConfig, SamplingConfig
from brats_inpainting.data import cases, output
from brats_inpainting.data.nifti import LPS
from brats_inpainting.errors import CaseError, ConfigError
from brats_inpainting.fill import Options, fill_folder
from brats_inpainting.layouts import CaseFolder
from brats_inpainting.record import ADDED, Record

from .conftest import inpainter, with_plan, write_case


def run_of(folder, filler, **settings):
    options = Options(report_path=folder / "report")
    return fill_folder(filler, CaseFolder(folder / "data"), folder / "out", options=options, quiet=True, **settings)


def test_the_next_case_is_read_while_one_is_filled_and_files_are_written_beside(tmp_path, monkeypatch):
    notes, load, save = [], cases.load, output.save

    def noted(what, function, name):
        def call(*args):
            notes.append((what, name(args), threading.current_thread()))
            return function(*args)

        return call

    monkeypatch.setattr(cases, "load", noted("read", load, lambda args: args[0].id))
    monkeypatch.setattr(output, "save", noted("written", save, lambda args: args[1].name[:6]))
    for number in range(4):
        write_case(tmp_path / "data", f"case-{number}", seed=number)
    run_of(tmp_path, inpainter())
    order = [(what, case_id) for what, case_id, _ in notes]
    assert order.index(("read", "case-1")) < order.index(("written", "case-0"))
    assert [case_id for what, case_id in order if what == "written"] == [f"case-{number}" for number in range(4)]
    readers, writers = ({thread for what, _, thread in notes if what == name} for name in ("read", "written"))
    assert len(readers) == len(writers) == 1
    assert not {threading.main_thread()} & (readers | writers)


def test_any_function_of_a_scan_fills_a_folder_and_a_failure_is_that_of_its_case(tmp_path):
    def half(scan):
        if scan.id == "case-1":
            raise CaseError("case-1: not this one")
        return np.where(scan.mask_SHW, 0.5, scan.image_SHW)

    for number in range(3):
        write_case(tmp_path / "data", f"case-{number}", seed=number)
    record = run_of(tmp_path, Baseline(half))
    assert record.failed == {"case-1": "case-1: not this one"}
    assert sorted(record.cases) == ["case-0", "case-2"]
    assert record.cases["case-0"]["voxels_changed_outside"] == 0
    with pytest.raises(ConfigError, match="exists already, and so do 1 more"):
        run_of(tmp_path, Baseline(half))
    before = (tmp_path / "out" / cases.output_name("case-0")).stat().st_mtime_ns
    assert run_of(tmp_path, Baseline(half), existing="resume").failed == record.failed
    assert (tmp_path / "out" / cases.output_name("case-0")).stat().st_mtime_ns == before


def test_a_case_whose_name_is_a_pattern_leaves_the_maps_of_others_alone(tmp_path):
    for case_id in ("case-1", "case-[1]", "case-*"):
        write_case(tmp_path / "data", case_id)
    run_of(tmp_path, inpainter(samples=2))
    for case_id in ("case-1", "case-[1]", "case-*"):
        assert (tmp_path / "report" / f"{case_id}-t1n-inference-std.nii.gz").exists()


@pytest.mark.slow
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
    "order": "down",
    "smoothing": 0.5,
    "dilate": 1.0,
    "resample": False,
    "replace": "slices",
}
OTHER = {"weights": {"sha256": "1" * 64}, "diffusion": {"diffusion": DiffusionConfig()}}
OTHER |= {"precision": "bf16", "seed": 1, "keep_dtype": True}


def test_every_setting_of_a_fill_is_compared():
    assert {*SAMPLING} == {*SamplingConfig.model_fields}
    assert {"sampling", *OTHER} == {*inpainter().settings(), "seed", "keep_dtype"}


@pytest.mark.parametrize("name", [*SAMPLING, *OTHER])
def test_a_fill_is_not_resumed_with_another(name, tmp_path):
    write_case(tmp_path / "data", "a")
    (tmp_path / "out").mkdir()
    output = tmp_path / "out" / cases.output_name("a")
    output.touch()
    machine = inpainter()
    settings = machine.settings() | {"seed": 0, "keep_dtype": False}
    (tmp_path / "report").mkdir()
    Record(tmp_path / "report", settings, machine.facts(), {"a": {"output": output.name}}).write()
    again = inpainter(**{name: SAMPLING[name]}) if name in SAMPLING else machine
    if name in ("weights", "diffusion"):
        again = replace(machine, weights=replace(machine.weights, **OTHER[name]))
    elif name == "precision":
        again = with_plan(machine, precision=OTHER[name])
    options = Options(report_path=tmp_path / "report", **{name: OTHER[name]} if name in ("seed", "keep_dtype") else {})
    layout = CaseFolder(tmp_path / "data")
    with pytest.raises(ConfigError, match=f"made with another {'sampling' if name in SAMPLING else name}\n"):
        fill_folder(again, layout, tmp_path / "out", options=options, existing="resume", quiet=True)
    run_of(tmp_path, inpainter(), existing="resume")
    assert output.stat().st_size == 0  # kept


def test_a_run_of_a_version_with_fewer_settings_is_resumed(tmp_path):
    write_case(tmp_path / "data", "a")
    run_of(tmp_path, inpainter())
    path = tmp_path / "report" / "run.json"
    stored = json.loads(path.read_text())
    for name, settings in ADDED.items():
        for added in settings:
            del stored["settings"][name][added]
    path.write_text(json.dumps(stored))
    run_of(tmp_path, inpainter(), existing="resume")
    with pytest.raises(ConfigError, match="made with another sampling"):
        run_of(tmp_path, inpainter(order="down"), existing="resume")


@pytest.mark.parametrize("name", ["batch_size", "most_voxels", "threads"])
def test_what_changes_last_bits_is_a_warning_when_a_run_is_resumed(name, tmp_path, caplog):
    write_case(tmp_path / "data", "a")
    run_of(tmp_path, inpainter())
    run_of(tmp_path, with_plan(inpainter(), **{name: 7}), existing="resume")
    assert f"made with another {name}: last bits may differ" in caplog.text


def test_limits_larger_than_a_head_are_alike(tmp_path, caplog):
    write_case(tmp_path / "data", "a")
    run_of(tmp_path, with_plan(inpainter(), most_voxels=16_000_000))
    for most in (18_000_000, None):
        run_of(tmp_path, with_plan(inpainter(), most_voxels=most), existing="resume")
    assert "last bits" not in caplog.text
