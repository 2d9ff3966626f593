"""The blocks of docs/python.md run, one after another, and the functions that it names exist."""

import importlib
import re
import shutil
from pathlib import Path

import nibabel as nib

import brats_inpainting
from brats_inpainting import Inpainter

from .conftest import LPS, write_case

PAGE = (Path(__file__).parents[1] / "docs" / "python.md").read_text()


def test_the_blocks_do_what_they_say(tmp_path, monkeypatch, tiny_weights):
    case = write_case(tmp_path / "cases", "a")
    write_case(tmp_path / "cases", "b", seed=1)
    shutil.copy(case / "a-t1n-voided.nii.gz", tmp_path / "T1.nii.gz")
    shutil.copy(case / "a-mask.nii.gz", tmp_path / "mask.nii.gz")
    brain = nib.load(tmp_path / "T1.nii.gz").get_fdata() != 0
    nib.save(nib.Nifti1Image(brain.astype("u1"), LPS), tmp_path / "brain-mask.nii.gz")
    load = Inpainter.load
    monkeypatch.setattr(Inpainter, "load", lambda: load(tiny_weights, device="cpu"))
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(block, names)
    assert (tmp_path / "filled.nii.gz").exists()
    for folder in ("filled", "grey"):
        assert len(list((tmp_path / folder).glob("*-t1n-inference.nii.gz"))) == 2
    assert list(names["record"].cases) == ["a", "b"]


def test_the_functions_that_the_table_names_exist():
    for name in re.findall(r"`([a-z.]+\.[a-z_]+)`", PAGE.partition("| command |")[2].partition("\n\n")[0]):
        module, _, function = name.rpartition(".")
        assert callable(getattr(importlib.import_module(f"brats_inpainting.{module}"), function))


def test_the_public_names_can_be_imported():
    for name in brats_inpainting.__all__:
        assert getattr(brats_inpainting, name).__name__ == name
