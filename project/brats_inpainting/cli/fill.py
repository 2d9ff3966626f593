"""Commands for filling: infer, baseline, check, example."""

from __future__ import annotations

import os
import re
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from brats_inpainting.cli import masks, reports
from brats_inpainting.cli.app import (
    GroupedCommand,
    NoImages,
    OutputPath,
    PrecisionName,
    WeightsFile,
    app,
    choice,
    finish,
    folder,
    log,
    option,
    out,
    quiet,
)
from brats_inpainting.cli.masks import BrainMask, InvertMask, Labels, Threshold
from brats_inpainting.config import BASELINES, DEFAULT_PRESET, NOISE_MODES, ORDERS, PRESETS, SAMPLERS, weights_path
from brats_inpainting.container import offers
from brats_inpainting.errors import CaseError, ConfigError

if TYPE_CHECKING:
    from brats_inpainting.data.lesion import MaskReading
    from brats_inpainting.fill import Existing, Options
    from brats_inpainting.inpainter import Inpainter
    from brats_inpainting.layouts import Layout

CASES = "Folder with one sub-folder per case, or a BIDS dataset."
Image = Annotated[Path | None, option("image", "A single T1 scan, instead of --data-path.")]
Mask = Annotated[Path | None, option("mask", "Mask for --image.")]
Participants = Annotated[
    list[str] | None,
    option("participant-label", "Only this participant of a BIDS dataset; repeat, or use commas.", metavar="<label>"),
]
Dilate = Annotated[float | None, option("dilate", "Dilate the mask by this distance in mm.", min=0)]
Resume = Annotated[bool, option("resume", "Keep finished outputs, compute the missing ones; overrides --overwrite.")]
NoResample = Annotated[bool, option("no-resample", "Do not bring scans of other voxel sizes to 1 mm.")]
Overwrite = Annotated[bool, option("overwrite", "Replace existing outputs.", envvar="BRATS_INPAINTING_OVERWRITE")]
INSTALLED = [name for name, package in BASELINES.items() if package is None or offers(package)]


@app.command(cls=GroupedCommand)
def infer(
    data_path: Annotated[Path | None, folder("data-path", CASES, "--input-dir")] = None,
    output_path: Annotated[
        Path | None,
        folder("output-path", "Folder that receives {id}-t1n-inference.nii.gz, or a BIDS derivative.", "--output-dir"),
    ] = None,
    participant_label: Participants = None,
    image: Image = None,
    mask: Mask = None,
    output: Annotated[Path | None, option("output", "Output file for --image and --mask.")] = None,
    label: Labels = None,
    threshold: Threshold = None,
    invert_mask: InvertMask = False,
    brain_mask: BrainMask = None,
    weights: WeightsFile = None,
    additional_files_path: Annotated[
        Path | None, folder("additional-files-path", "Folder with an optional weights file, as mounted by MedPerf.")
    ] = None,
    parameters_file: Annotated[
        Path | None, option("parameters-file", "YAML file of settings, in this project's or guided-diffusion's names.")
    ] = None,
    preset: Annotated[str | None, option("preset", f"{', '.join(PRESETS)}. Default: {DEFAULT_PRESET}.")] = None,
    sampler: Annotated[str | None, option("sampler", "Replaces the preset's sampler.", **choice(SAMPLERS))] = None,
    steps: Annotated[int | None, option("steps", "Sampler steps; replaces the preset's.", min=1)] = None,
    samples: Annotated[
        int | None,
        option("samples", "Average this many samples; --report-path receives their standard deviation.", min=1),
    ] = None,
    noise: Annotated[str | None, option("noise", "Correlation of the noise along z.", **choice(NOISE_MODES))] = None,
    order: Annotated[
        str | None, option("order", "Order of slices, for weights conditioned on the previous slice.", **choice(ORDERS))
    ] = None,
    smoothing: Annotated[
        str | None, option("smoothing", "Gaussian sigma in voxels, 0 = off; one value, or one per axis: 0,0,1.075.")
    ] = None,
    dilate: Dilate = None,
    no_resample: NoResample = False,
    seed: Annotated[int | None, option("seed", "Same seed, same result. Default: 0.", min=0)] = None,
    device: Annotated[str | None, option("device", "auto, cpu, cuda, cuda:1, mps. Default: auto.")] = None,
    batch_size: Annotated[str, option("batch-size", "Windows per network pass: auto or a number.")] = "auto",
    precision: PrecisionName = "auto",
    no_cuda_graphs: Annotated[
        bool, option("no-cuda-graphs", "On an NVIDIA GPU, launch each operation of every pass separately.")
    ] = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
    keep_dtype: Annotated[bool, option("keep-dtype", "Write the input's data type instead of float32.")] = False,
    report_path: Annotated[
        Path | None, folder("report-path", "Folder for report.html, run.json, single samples and uncertainty maps.")
    ] = None,
    no_images: NoImages = False,
    cluster: Annotated[
        str | None,
        option(
            "cluster",
            "Run on a Dask cluster: local[:N], tcp://host:port, or a scheduler file.",
            hidden=not offers("distributed"),
        ),
    ] = None,
) -> None:
    """Fill the lesions of one scan or of many."""
    if not any((data_path, output_path, image, mask, output)) and (
        folders := os.environ.get("BRATS_INPAINTING_FOLDERS")
    ):
        data_path, output_path = map(Path, folders.split(":"))  # the container's /input and /output
    reading = masks.reading(label, threshold, invert=invert_mask)
    pair = {"image": image, "mask": mask, "brain": brain_mask}
    layout, target = _parse_paths(data_path, output_path, pair, output, participant_label or [], reading=reading)
    jobs = layout.jobs(target)  # reports unusable paths before the network is loaded
    reports.keep_apart(report_path, output_path)
    from brats_inpainting import parameters

    from_file = parameters.read(parameters_file) if parameters_file else parameters.Parameters()
    if parameters_file:
        log.info("%s: %s", parameters_file, from_file)
    if from_file.all_steps and not (preset or sampler or steps):
        preset, steps = "paper", from_file.all_steps
    overrides = {
        "sampler": sampler,
        "steps": steps,
        "samples": samples,
        "noise": noise,
        "order": order,
        "smoothing": None if smoothing is None else _sigma(smoothing),
        "dilate": dilate,
        "resample": False if no_resample else None,
    }
    from brats_inpainting.diffusion import checkpoint
    from brats_inpainting.fill import Options, fill_folder
    from brats_inpainting.inpainter import Inpainter

    preset = preset or from_file.preset or DEFAULT_PRESET
    found = weights or (additional_files_path and checkpoint.find(additional_files_path))
    loading = {
        "weights": weights_path(found or from_file.bundled, preset),
        "preset": preset,
        "device": device or from_file.device or "auto",
        "fallback": None if device else "cpu",
        "batch_size": _whole_number(batch_size),
        "precision": precision,
        "replay": not no_cuda_graphs,
        **from_file.loading(),
        **{name: value for name, value in overrides.items() if value is not None},
    }
    inpainter = Inpainter.load(**loading | ({"device": "cpu"} if cluster is not None else {}))
    options = Options((from_file.seed or 0) if seed is None else seed, keep_dtype, report_path)
    _log_settings(inpainter, preset, options)
    with _workers(cluster, loading) as workers:
        if not workers:
            log.info("%s", inpainter.plan)
        existing = _existing(resume=resume, overwrite=overwrite)
        record = fill_folder(
            inpainter, layout, target, options=options, existing=existing, workers=workers, quiet=quiet()
        )
    if report_path:
        fills = {case: {"filled": path} for path, case in jobs.items()}
        reports.write_for_run(fills, report_path, record.failed, not no_images)
    finish(record.failed)


def _log_settings(inpainter: Inpainter, preset: str, options: Options) -> None:
    """Log what the results depend on."""
    used = inpainter.sampling
    if used.samples > 1 and not options.report_path:
        log.warning("single samples and their standard deviation are not kept; set --report-path to keep them")
    log.info("weights %s", inpainter.weights)
    log.debug("SHA-256 %s", inpainter.weights.sha256)
    chosen = preset, used.steps, used.sampler, used.samples, used.noise, used.smoothing, options.seed
    log.info("preset %s: %d steps of %s, %d sample(s), %s noise, filter %s, seed %d", *chosen)
    log.debug("%s", used)


@app.command(cls=GroupedCommand)
def baseline(
    method: Annotated[str, option("method", "Method.", **choice(BASELINES, INSTALLED))],
    data_path: Annotated[Path, folder("data-path", CASES)],
    output_path: OutputPath,
    participant_label: Participants = None,
    label: Labels = None,
    threshold: Threshold = None,
    invert_mask: InvertMask = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
    report_path: Annotated[Path | None, folder("report-path", "Folder for run.json.")] = None,
) -> None:
    """Fill every case without a network, for comparison."""
    from brats_inpainting import layouts
    from brats_inpainting.baselines import METHODS, Baseline
    from brats_inpainting.fill import Options, fill_folder

    reports.keep_apart(report_path, output_path)
    record = fill_folder(
        Baseline(METHODS[method]),
        layouts.of_folder(data_path, participant_label or [], masks.reading(label, threshold, invert=invert_mask)),
        output_path,
        options=Options(report_path=report_path),
        existing=_existing(resume=resume, overwrite=overwrite),
        quiet=quiet(),
    )
    finish(record.failed)


@app.command()
def check(
    data_path: Annotated[Path | None, folder("data-path", CASES)] = None,
    participant_label: Participants = None,
    image: Image = None,
    mask: Mask = None,
    label: Labels = None,
    threshold: Threshold = None,
    invert_mask: InvertMask = False,
    brain_mask: BrainMask = None,
    dilate: Dilate = None,
    no_resample: NoResample = False,
) -> None:
    """Report all problems of all cases, without loading the network."""
    from brats_inpainting.data import cases, volume

    others = {"--data-path": data_path, "--participant-label": participant_label}
    _require_together({"--image": image, "--mask": mask}, others)
    reading = masks.reading(label, threshold, invert=invert_mask)
    pair = {"image": image, "mask": mask, "brain": brain_mask}
    if not (layout := _layout(data_path, pair, participant_label or [], reading)):
        raise ConfigError("nothing to check\n  Give --data-path, or --image and --mask.")
    failed: dict[str, str] = {}
    warned, found = 0, layout.cases
    for case in found:
        try:
            scan = volume.prepare(cases.load(case), dilate=dilate or 0.0, resample=not no_resample)
        except CaseError as error:
            failed[case.id] = str(error)
        else:
            warned += bool(scan.loaded.warnings)
            out.print(f"{'!' if scan.loaded.warnings else '✓'} {scan.id}: {int(scan.fill_XYZ.sum()):,} voxels to fill")
    warnings = f", {warned} of them with warnings" if warned else ""
    out.print(f"{len(found) - len(failed)} of {len(found)} cases can be filled{warnings}")
    finish(failed)


@app.command()
def example(
    output_path: OutputPath,
    seed: Annotated[int, option("seed", "Random seed of the masks.", min=0)] = 0,
    template: Annotated[
        bool,
        option(
            "template",
            "Use the ICBM152 template, an average brain from nilearn.",
            hidden=not offers("nilearn"),
        ),
    ] = False,
) -> None:
    """Write an example case. The scan is a person's (OpenNeuro ds002748, CC0), the masks are synthetic."""
    from brats_inpainting.data.example import write_example

    case = write_example(output_path, seed=seed, brain="template" if template else "person")
    out.print(f"written: {case}")


def _workers(where: str | None, loading: dict[str, Any]) -> Any:
    """Return a context manager that gives the workers of a cluster, or ``None`` without one."""
    if where is None:
        return nullcontext()
    from brats_inpainting import cluster

    return cluster.connect(where, loading)


def _existing(*, resume: bool, overwrite: bool) -> Existing:
    return "resume" if resume else "overwrite" if overwrite else "error"


def _parse_paths(
    data_path: Path | None,
    output_path: Path | None,
    pair: dict[str, Path | None],
    output: Path | None,
    participants: list[str],
    *,
    reading: MaskReading,
) -> tuple[Layout, Path]:
    """Return the layout of the inputs and the output path; ``pair`` has the keys image, mask and brain."""
    single = {"--image": pair["image"], "--mask": pair["mask"], "--output": output}
    many = {"--data-path": data_path, "--output-path": output_path}
    _require_together(single, many | {"--participant-label": participants})
    _require_together(many, single)
    layout, target = _layout(data_path, pair, participants, reading), output or output_path
    if not (layout and target):
        raise ConfigError("nothing to fill\n  Give --data-path and --output-path, or --image, --mask and --output.")
    return layout, target


def _layout(
    data_path: Path | None, pair: dict[str, Path | None], participants: list[str], reading: MaskReading
) -> Layout | None:
    """Return the layout of a folder or of a pair, or ``None`` if neither is given."""
    from brats_inpainting import layouts

    image, mask, brain = pair["image"], pair["mask"], pair["brain"]
    if image and mask:
        return layouts.Pair(image, mask, brain, reading)
    masks.refuse_brain(brain)
    return layouts.of_folder(data_path, participants, reading) if data_path else None


def _require_together(ours: dict[str, Any], others: dict[str, Any]) -> None:
    """Reject incomplete groups of options, and options of both groups.

    Raises:
        ConfigError: naming the missing options.
    """
    if any(ours.values()) and (missing := [name for name, value in ours.items() if not value]):
        raise ConfigError(f"{' and '.join(missing)} missing\n  {', '.join(ours)} are required together.")
    if all(ours.values()) and any(others.values()):
        raise ConfigError("a single pair and a folder are mutually exclusive\n  Run the command once for each.")


def _whole_number(text: str) -> int | None:
    """Parse a batch size; ``None`` for auto."""
    if text == "auto":
        return None
    if not re.fullmatch("[1-9][0-9]{0,3}", text):
        raise ConfigError(f"--batch-size {text}: neither auto nor a whole number from 1 to 9999")
    return int(text)


def _sigma(text: str) -> float | tuple[float, ...]:
    """Parse the Gaussian's sigma: one for all axes, or three."""
    try:
        sigma = tuple(map(float, text.split(",")))
    except ValueError:
        sigma = ()
    if len(sigma) not in (1, 3):
        raise ConfigError(f"--smoothing {text}: not one number, nor three such as 0,0,1.075")
    return sigma if len(sigma) == 3 else sigma[0]
