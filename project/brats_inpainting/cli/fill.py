"""The commands that fill: infer, check, example."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from brats_inpainting.cli import pages
from brats_inpainting.cli.app import (
    NoImages,
    OutputPath,
    PrecisionName,
    WeightsFile,
    app,
    finish,
    log,
    option,
    out,
    quiet,
)
from brats_inpainting.config import DEFAULT_PRESET, PRESETS, weights_path
from brats_inpainting.container import offers
from brats_inpainting.errors import CaseError, ConfigError

if TYPE_CHECKING:
    from brats_inpainting.data.cases import Case
    from brats_inpainting.folder import Run

PRESET_NAMES = ", ".join(PRESETS)
SamplerName = StrEnum("SamplerName", ["ddpm", "ddim", "dpmpp_2m", "heun"])
NoiseMode = StrEnum("NoiseMode", ["independent", "shared", "slerp"])
CASES = "Folder with one sub-folder per case, or a BIDS dataset."
Participants = Annotated[
    list[str] | None,
    option("participant-label", "Fill only this participant of a BIDS dataset; repeat, or use commas."),
]


@app.command()
def infer(
    data_path: Annotated[Path | None, option("data-path", CASES, "--input-dir")] = None,
    output_path: Annotated[
        Path | None,
        option("output-path", "Folder that receives {id}-t1n-inference.nii.gz, or a BIDS derivative.", "--output-dir"),
    ] = None,
    participant_label: Participants = None,
    image: Annotated[Path | None, option("image", "A single T1, instead of --data-path.")] = None,
    mask: Annotated[Path | None, option("mask", "Its mask.")] = None,
    output: Annotated[Path | None, option("output", "The file to write for --image and --mask.")] = None,
    weights: WeightsFile = None,
    additional_files_path: Annotated[
        Path | None, option("additional-files-path", "Folder that may hold the weights file, as MedPerf mounts it.")
    ] = None,
    parameters_file: Annotated[Path | None, option("parameters-file", "YAML: our names or guided-diffusion's.")] = None,
    preset: Annotated[str | None, option("preset", f"{PRESET_NAMES}. Default: {DEFAULT_PRESET}.")] = None,
    sampler: Annotated[SamplerName | None, option("sampler", "Instead of the preset's.")] = None,
    steps: Annotated[int | None, option("steps", "Sampler steps, instead of the preset's.", min=1)] = None,
    samples: Annotated[
        int | None, option("samples", "Average K samples; their spread goes to --report-path.", min=1)
    ] = None,
    noise: Annotated[NoiseMode | None, option("noise", "How slices share noise along z.")] = None,
    smoothing: Annotated[
        str | None, option("smoothing", "Gaussian sigma in voxels, 0 = off; or one each for x, y and z: 0,0,1.075.")
    ] = None,
    dilate: Annotated[float | None, option("dilate", "Grow the mask by so many millimetres.", min=0)] = None,
    seed: Annotated[int | None, option("seed", "Same seed, same result. Default: 0.", min=0)] = None,
    device: Annotated[str | None, option("device", "auto, cpu, cuda, cuda:1, mps. Default: auto.")] = None,
    batch_size: Annotated[str, option("batch-size", "Windows per network pass: auto or a number.")] = "auto",
    precision: Annotated[
        PrecisionName,
        option("precision", "Of the network; auto is fp32 on a CPU, on a GPU by network and GPU."),
    ] = PrecisionName.auto,
    resume: Annotated[bool, option("resume", "Keep finished outputs, make the others; wins over --overwrite.")] = False,
    overwrite: Annotated[
        bool, option("overwrite", "Make existing outputs anew.", envvar="BRATS_INPAINTING_OVERWRITE")
    ] = False,
    keep_dtype: Annotated[bool, option("keep-dtype", "Write the input's data type instead of float32.")] = False,
    report_path: Annotated[
        Path | None, option("report-path", "Folder for report.html, run.json, single samples and uncertainty maps.")
    ] = None,
    no_images: NoImages = False,
    cluster: Annotated[
        str | None,
        option(
            "cluster",
            "Share the cases out: local[:N], tcp://host:port, or a Dask scheduler's file.",
            hidden=not offers("distributed"),
        ),
    ] = None,
) -> None:
    """Fill the masked part of every case."""
    if not any((data_path, output_path, image, mask, output)) and (
        folders := os.environ.get("BRATS_INPAINTING_FOLDERS")
    ):
        data_path, output_path = map(Path, folders.split(":"))  # the container's /input and /output
    jobs = _jobs(data_path, output_path, image, mask, output, participants=participant_label or [])
    pages.keep_apart(report_path, output_path)
    from brats_inpainting import parameters

    said = parameters.read(parameters_file) if parameters_file else parameters.Parameters()
    if parameters_file:
        log.info("%s: %s", parameters_file, said)
    if said.all_steps and not (preset or sampler or steps):
        preset, steps = "paper", said.all_steps
    flags = {
        "sampler": sampler,
        "steps": steps,
        "samples": samples,
        "noise": noise,
        "smoothing": None if smoothing is None else _sigma(smoothing),
        "dilate": dilate,
    }
    from brats_inpainting.data import bids, cases
    from brats_inpainting.diffusion import checkpoint
    from brats_inpainting.folder import Run
    from brats_inpainting.infer import Inpainter

    preset = preset or said.preset or DEFAULT_PRESET
    given = weights or (additional_files_path and checkpoint.find(additional_files_path))
    described = Path("small-2") if said.unet else None  # a file that describes a network means a slice-wise one
    loading: dict[str, Any] = {
        "weights": weights_path(given or described, preset),
        "preset": preset,
        "device": device or said.device or "auto",
        "batch_size": _whole_number(batch_size),
        "at_most": said.batch_size,
        "precision": precision.value,
        "unet": said.unet,
        "diffusion": said.diffusion,
        **said.sampling | {name: value for name, value in flags.items() if value is not None},
    }
    inpainter = Inpainter.load(**loading | ({"device": "cpu"} if cluster else {}))
    run = Run(
        inpainter,
        jobs,
        seed=(said.seed or 0) if seed is None else seed,
        keep_dtype=keep_dtype,
        report_path=report_path,
        quiet=quiet(),
    )
    with _crew(cluster, run, loading) as fill:
        run.start("resume" if resume else "overwrite" if overwrite else "error")
        how = inpainter.sampling
        log.info("weights %s", inpainter.weights)
        told = loading["preset"], how.steps, how.sampler, how.samples, how.noise, how.smoothing, run.seed
        log.info("preset %s: %d steps of %s, %d sample(s), %s noise, filter %s, seed %d", *told)
        beside = f", {inpainter.side_by_side} times side by side" if inpainter.side_by_side > 1 else ""
        log.info("%d windows at a time%s, in %s", inpainter.batch_size, beside, inpainter.precision)
        log.debug("%s", how)
        fill()
    log.info("%d of %d cases filled", len(run.jobs) - len(run.failed), len(run.jobs))
    if data_path and output_path and cases.is_bids(data_path):
        run.failed |= bids.describe(jobs, data_path, output_path)
    if report_path:
        pages.of_run({case: {"filled": path} for path, case in jobs.items()}, report_path, run.failed, not no_images)
    finish(run.failed)


@app.command()
def check(
    data_path: Annotated[Path, option("data-path", CASES)],
    participant_label: Participants = None,
) -> None:
    """List every problem of every case at once, without loading the network."""
    from brats_inpainting.data import cases

    failed: dict[str, str] = {}
    found = _found(data_path, participant_label or [])
    for case in found:
        try:
            loaded = cases.load(case)
        except CaseError as error:
            failed[case.id] = str(error)
        else:
            out.print(f"{'!' if loaded.warnings else '✓'} {loaded.id}: {int(loaded.mask_XYZ.sum()):,} voxels to fill")
    out.print(f"{len(found) - len(failed)} of {len(found)} cases can be filled")
    finish(failed)


@app.command()
def example(
    output_path: OutputPath,
    seed: Annotated[int, option("seed", "Place and shape of the masks.", min=0)] = 0,
    template: Annotated[
        bool,
        option(
            "template",
            "Take the ICBM152 template, an average brain that nilearn ships.",
            hidden=not offers("nilearn"),
        ),
    ] = False,
) -> None:
    """Write a complete example case: the packaged scan of a person (OpenNeuro ds002748, CC0), with synthetic masks."""
    from brats_inpainting.data.example import write_example

    case = write_example(output_path, seed=seed, brain="template" if template else "person")
    out.print(f"written: {case}")


def _crew(where: str | None, run: Run, loading: dict[str, Any]) -> AbstractContextManager[Callable[[], None]]:
    """Return what fills the cases of a run: this process, or the workers of a cluster."""
    if not where:
        return nullcontext(run.go)
    from brats_inpainting import cluster

    return cluster.crew(where, run, loading)


def _jobs(
    data_path: Path | None,
    output_path: Path | None,
    image: Path | None,
    mask: Path | None,
    output: Path | None,
    *,
    participants: list[str],
) -> dict[Path, Case]:
    """Return what is to be filled and where each result goes."""
    from brats_inpainting.data import bids, cases

    single = {"--image": image, "--mask": mask, "--output": output}
    many = {"--data-path": data_path, "--output-path": output_path}
    for ours, others in ((single, many | {"--participant-label": participants}), (many, single)):
        if any(ours.values()) and (missing := [name for name, value in ours.items() if not value]):
            raise ConfigError(f"{' and '.join(missing)} missing\n  {', '.join(ours)} belong together.")
        if all(ours.values()) and any(others.values()):
            raise ConfigError("a single pair and a folder exclude each other\n  Run the command twice.")
    if data_path and output_path:
        found = _found(data_path, participants)
        if cases.is_bids(data_path):
            return bids.jobs(found, data_path, output_path)
        return {output_path / cases.output_name(case.id): case for case in found}
    if not (image and mask and output):
        raise ConfigError("nothing to fill\n  Give --data-path and --output-path, or --image, --mask and --output.")
    return _pair(image, mask, output)


def _found(data_path: Path, participants: list[str]) -> list[Case]:
    """Find the cases of a BIDS dataset, or of a folder of cases, where there are no participants to choose."""
    from brats_inpainting.data import bids, cases

    if cases.is_bids(data_path):
        return bids.find(data_path, participants)
    if participants:
        raise ConfigError(f"{data_path}: no BIDS dataset, which --participant-label goes with\n  Leave it out.")
    return cases.find(data_path)


def _pair(image: Path, mask: Path, output: Path) -> dict[Path, Case]:
    """Return the job of one pair of files; the case goes by the name of its output."""
    from brats_inpainting.data.cases import Case

    for given in (image, mask):
        if not given.is_file():
            raise ConfigError(f"{given}: no such file")
        if output.exists() and output.samefile(given):
            raise ConfigError(f"{output}: is an input too\n  Give another name for the result.")
    if not output.name.endswith((".nii", ".nii.gz")):
        raise ConfigError(f"{output}: not a NIfTI name\n  Let it end in .nii.gz or .nii.")
    return {output: Case(output.name.removesuffix(".gz").removesuffix(".nii"), image, mask)}


def _whole_number(text: str) -> int | None:
    """Read a batch size; ``None`` for auto."""
    if text == "auto":
        return None
    if not re.fullmatch("[1-9][0-9]{0,3}", text):
        raise ConfigError(f"--batch-size {text}: neither auto nor a whole number from 1 to 9999")
    return int(text)


def _sigma(text: str) -> float | tuple[float, ...]:
    """Read a Gaussian's width, one for all directions or one for each."""
    try:
        sigma = tuple(map(float, text.split(",")))
    except ValueError:
        sigma = ()
    if len(sigma) not in (1, 3):
        raise ConfigError(f"--smoothing {text}: neither a number nor three, as 0,0,1.075")
    return sigma if len(sigma) == 3 else sigma[0]
