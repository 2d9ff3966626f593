"""Fuzz the file readers: each mutated file must be read, or rejected with an exception from errors.py.

usage: python -m tests.reliability.fuzz [COUNT [SEED]]

Hypothesis derives COUNT inputs (default 20,000) from valid NIfTI files, parameters files and checkpoints. The process
is limited to 2 GB of address space beyond its initial size.
"""

import io
import json
import logging
import os
import pickle
import re
import resource
import struct
import sys
import tempfile
import time
import warnings
import zipfile
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from safetensors.torch import save as as_safetensors

from brats_inpainting import config, parameters
from brats_inpainting.config import DiffusionConfig
from brats_inpainting.data import nifti, output, validation, volume
from brats_inpainting.device import choose_device
from brats_inpainting.diffusion import checkpoint
from brats_inpainting.errors import InpaintingError

from ..conftest import LPS, TINY, brain, lesion, tiny_network

SHAPE = (16, 16, 8)
RECIPES = Path(__file__).parents[2] / "workspace"
GB = 2**30

BYTES = [b"\xff" * 2, b"\xff" * 4, b"\x7f\xff", b"\x80\x00", b"\x00" * 4, b"\x00" * 16, b"\x01", b"\x08"]
FLOATS = [struct.pack("<f", value) for value in (np.nan, np.inf, -np.inf, 0, -1, 1e-40, 3e38, 1e9)]
WORDS = [
    "*a",
    "&a ",
    "!!",
    "!!binary ",
    "[",
    "]",
    "{",
    "}",
    "? ",
    "<<: ",
    ": ",
    "- ",
    "|",
    ">",
    "%",
    "@",
    "\t",
    "\n",
    "'",
    '"',
    "\\",
]
WORDS += [
    "1e999",
    ".nan",
    "-.inf",
    "~",
    "0x",
    "0b1",
    "1_0",
    "9" * 30,
    "2001-02-30",
    "12:30:45",
    "\u2028",
    "\x85",
    "é",
    "--- ",
    "...",
]


def changed(whole, edits, kept):
    """Overwrite bytes at the given positions, then truncate to a fraction of the length."""
    content = bytearray(whole)
    for place, new in edits:
        at = int(place * len(content))
        content[at : at + len(new)] = new
    return bytes(content[: int(kept * len(content))])


def edits(values):
    """A strategy for one to five positions, as fractions of a file, with the values to write there."""
    return st.lists(st.tuples(st.floats(0, 1, exclude_max=True), values), min_size=1, max_size=5)


kept = st.one_of(st.just(1.0), st.just(1.0), st.floats(0, 1))


def nifti_files():
    """Valid files: NIfTI-1, byte-swapped, NIfTI-2, scaled integers, and with a header extension; FreeSurfer."""
    image = nib.Nifti1Image(np.where(lesion(SHAPE), 0, brain(SHAPE)), LPS)
    integers = nib.Nifti1Image(image.get_fdata().astype(np.int16), LPS)
    integers.header.set_slope_inter(0.5, 1)
    extended = nib.Nifti1Image(np.asarray(image.dataobj), LPS, image.header)
    extended.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"taken on a Tuesday"))
    swapped = nib.Nifti1Image(np.asarray(image.dataobj), LPS, image.header.as_byteswapped(">"))
    second = nib.Nifti2Image(np.asarray(image.dataobj), LPS)
    freesurfer = nib.MGHImage(np.asarray(image.dataobj), LPS.astype(np.float32))
    return [each.to_bytes() for each in (image, swapped, second, integers, extended, freesurfer)]


class Nifti:
    """A case whose scan is a mutated file: read, prepared and written."""

    def __init__(self, folder):
        self.folder, self.files = folder, nifti_files()
        self.mask = nib.Nifti1Image(lesion(SHAPE).astype(np.uint8), LPS)
        values = st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from(BYTES + FLOATS))
        self.inputs = st.tuples(st.sampled_from(range(len(self.files))), edits(values), kept, st.booleans())

    def make(self, number, edits, kept, anywhere):
        """Mutate the header, or any byte of the file."""
        whole, size = self.files[number], 544
        if anywhere:
            return changed(whole, edits, kept)
        return changed(whole[:size], edits, 1.0) + whole[size : int(kept * len(whole))]

    def use(self, *given):
        """Process the case without the network."""
        (self.folder / "x.nii").write_bytes(self.make(*given))
        image = nifti.read(self.folder / "x.nii")
        mask = type(image)(np.asarray(self.mask.dataobj), image.affine) if image.shape[:3] == SHAPE else self.mask
        loaded = validation.examine("x", image, mask, names=("image", "mask"))
        scan = volume.prepare(loaded)
        filled_XYZ = scan.inside(volume.smooth(scan.image_SHW, 1.0))
        for keep_dtype in (False, True):
            output.save(output.image_like(loaded, filled_XYZ, keep_dtype=keep_dtype), self.folder / "y.nii.gz")
            assert nifti.read(self.folder / "y.nii.gz").shape == image.shape


class Yaml:
    """A parameters file or training recipe with inserted or replaced words."""

    def __init__(self, folder):
        self.folder = folder
        self.texts = [path.read_text() for path in sorted(RECIPES.rglob("*.yaml"))]
        self.texts.append("".join(f"{name}: {1}\n" for name in sorted(parameters._File.model_fields)))
        words = st.one_of(st.sampled_from(WORDS), st.text(max_size=6), st.integers().map(str), st.floats().map(str))
        self.inputs = st.tuples(st.sampled_from(range(len(self.texts))), edits(words), st.booleans())

    def make(self, number, edits, as_values):
        """Insert words anywhere, or replace values with them."""
        text = self.texts[number]
        for place, word in edits:
            values = [m.span() for m in re.finditer(r"(?<=: )[^\n]+", text)] if as_values else []
            start, end = values[int(place * len(values))] if values else 2 * (int(place * len(text)),)
            text = text[:start] + word + text[end:]
        return text

    def use(self, *given):
        """Read it as both kinds of file, and apply its settings as ``infer`` does."""
        path = self.folder / "x.yaml"
        path.write_text(self.make(*given), encoding="utf-8", errors="surrogatepass")
        outcome(lambda: parameters.read_recipe(path))
        settings = parameters.read(path)
        config.sampling(settings.preset or config.DEFAULT_PRESET, 2, **settings.sampling)
        choose_device(settings.device or "auto", fallback="cpu")


class Checkpoint:
    """Weights with mutated bytes, or with a mutated pickle or header in an otherwise valid file."""

    def __init__(self, folder):
        self.folder, state = folder, tiny_network().state_dict()
        settings = {"unet": TINY.model_dump(), "diffusion": DiffusionConfig(prediction="x0").model_dump()}
        self.files = {"safetensors": as_safetensors(state, {checkpoint.METADATA: json.dumps(settings)})}
        for name, new_format in (("zip", True), ("legacy", False)):
            buffer = io.BytesIO()
            torch.save(state, buffer, _use_new_zipfile_serialization=new_format)
            self.files[name] = buffer.getvalue()
        values = st.one_of(
            st.binary(min_size=1, max_size=6),
            st.sampled_from([*BYTES, b"9", b"0", b"-", b'"', b"{", *opcodes()]),
        )
        self.inputs = st.tuples(st.sampled_from(sorted(self.files)), edits(values), kept, st.booleans())

    def make(self, kind, edits, kept, inside):
        """Mutate the pickle or header, or any byte of the file."""
        whole = self.files[kind]
        if not inside:
            return changed(whole, edits, kept)
        if kind == "safetensors":
            size = int.from_bytes(whole[:8], "little")
            header = changed(whole[8 : 8 + size], edits, kept)
            return struct.pack("<Q", len(header)) + header + whole[8 + size :]
        if kind == "legacy":
            return changed(whole[:8192], edits, 1.0) + whole[8192 : int(kept * len(whole))]
        packed = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(whole)) as source, zipfile.ZipFile(packed, "w") as target:
            for entry in source.infolist():
                content = source.read(entry)
                target.writestr(
                    entry, changed(content, edits, kept) if entry.filename.endswith("data.pkl") else content
                )
        return packed.getvalue()

    def use(self, kind, *rest):
        """Load the file."""
        path = self.folder / f"x.{'safetensors' if kind == 'safetensors' else 'pt'}"
        path.write_bytes(self.make(kind, *rest))
        weights = checkpoint.load(path)
        assert all(parameter.isfinite().all() for parameter in weights.network.parameters())


def opcodes():
    """Return the opcodes of pickle, for which torch has its own reader."""
    return [bytes([value]) if isinstance(value, int) else value for value in vars(pickle).values() if _is_opcode(value)]


def _is_opcode(value):
    return isinstance(value, bytes) and len(value) == 1


def outcome(action):
    """Return "used", or the name of an exception from errors.py; others propagate."""
    try:
        action()
    except InpaintingError as error:
        return type(error).__name__
    return "used"


KINDS = {"nifti": Nifti, "yaml": Yaml, "checkpoint": Checkpoint}


def fuzz(kind, count, *, start, folder):
    """Try ``count`` inputs of one kind; return the number of each outcome, and the seconds of the slowest."""
    target, outcomes, slowest = KINDS[kind](folder), Counter(), 0.0

    @seed(start)
    @settings(max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(target.inputs)
    def run(given):
        nonlocal slowest
        started = time.perf_counter()
        with warnings.catch_warnings(action="ignore"):
            outcomes[outcome(lambda: target.use(*given))] += 1
        slowest = max(slowest, time.perf_counter() - started)

    run()
    return outcomes, slowest


def main():
    count, start = (int(arg) for arg in (sys.argv[1:] + ["20000", "0"][len(sys.argv) - 1 :]))
    logging.disable()
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (taken + 2 * GB, taken + 2 * GB))
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            outcomes, slowest = fuzz(kind, -(-count // len(KINDS)), start=start, folder=Path(folder))
            print(f"{kind}: {outcomes.total():,} inputs, {dict(outcomes)}, the slowest {slowest:.2f} s")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"peak memory {peak:.2f} GB")


if __name__ == "__main__":
    main()
