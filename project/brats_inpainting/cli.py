"""The Typer app: one thin function per task, parsing only. Heavy imports wait until a task needs them."""

from __future__ import annotations

import importlib.metadata
import io
import logging
import os
import re
import signal
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, cast

import typer
from rich.console import Console

from brats_inpainting import host
from brats_inpainting.config import DEFAULT_PRESET, PRESETS
from brats_inpainting.errors import CaseError, ConfigError, InpaintingError
from brats_inpainting.progress import console

if TYPE_CHECKING:
    from brats_inpainting.data.cases import Case
    from brats_inpainting.device import Precision
    from brats_inpainting.report import Page

UNUSABLE, SOME_FAILED = 2, 3  # exit codes; 0 is success, 1 an internal error, 130 and 143 interruptions

app = typer.Typer(
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Fill lesions in brain MRI with plausible healthy tissue. Research use only.",
)
log = logging.getLogger("brats_inpainting")
out = Console(highlight=False, soft_wrap=True, markup=False)
wide = Console(highlight=False, markup=False, width=250)  # a narrow terminal wraps tables, and a file keeps them whole

LOUDNESS = ("-v", "--verbose", "-q", "--quiet")
PRESET_NAMES = ", ".join(PRESETS)
SamplerName = StrEnum("SamplerName", ["ddpm", "ddim", "dpmpp_2m", "heun"])
NoiseMode = StrEnum("NoiseMode", ["independent", "shared", "slerp"])
PrecisionName = StrEnum("PrecisionName", ["auto", "fp32", "bf16", "fp16"])
BenchmarkPart = StrEnum("BenchmarkPart", ["ceilings", "passes", "peers", "cases"])
BenchmarkNetwork = StrEnum("BenchmarkNetwork", ["paper", "bundled"])
PlaneName = StrEnum("PlaneName", ["axial", "coronal", "sagittal"])
Baseline = StrEnum("Baseline", ["mean", "biharmonic", "telea", "mirror"])


def _option(name: str, text: str, *aliases: str, **settings: Any) -> Any:
    return typer.Option(f"--{name}", *aliases, help=text, **settings)


DataPath = Annotated[Path, _option("data-path", "Folder with one sub-folder per case.")]
OutputPath = Annotated[Path, _option("output-path", "Folder that receives the results.")]
Predictions = Annotated[
    list[Path], _option("predictions", "Folder with {id}-t1n-inference.nii.gz; several are compared with the first.")
]
NoImages = Annotated[bool, _option("no-images", "Leave the pictures out of report.html.")]
Viewer = Annotated[bool, _option("viewer", "Embed the volumes in report.html, to look at every slice.")]
WeightsFile = Annotated[Path | None, _option("weights", "Network: .safetensors or .pt. Default: the bundled one.")]


def _version(wanted: bool) -> None:
    if wanted:
        out.print(importlib.metadata.version("brats-inpainting"))
        raise typer.Exit


@app.callback()
def common(
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Say more.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Say nothing but warnings and errors.")] = False,
    version: Annotated[bool, _option("version", "Print the version.", is_eager=True, callback=_version)] = False,
) -> None:
    """Set how much is said."""
    level = logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO
    handler = logging.Handler()
    handler.emit = lambda record: console.print(record.getMessage())  # type: ignore[method-assign]
    log.handlers, log.propagate = [handler], False
    log.setLevel(level)
    logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)  # it mends headers without naming the file


@app.command()
def infer(
    data_path: Annotated[
        Path | None, _option("data-path", "Folder with one sub-folder per case.", "--input-dir")
    ] = None,
    output_path: Annotated[
        Path | None, _option("output-path", "Folder that receives {id}-t1n-inference.nii.gz.", "--output-dir")
    ] = None,
    image: Annotated[Path | None, _option("image", "A single T1, instead of --data-path.")] = None,
    mask: Annotated[Path | None, _option("mask", "Its mask.")] = None,
    output: Annotated[Path | None, _option("output", "The file to write for --image and --mask.")] = None,
    weights: WeightsFile = None,
    additional_files_path: Annotated[
        Path | None, _option("additional-files-path", "Folder that may hold the weights file, as MedPerf mounts it.")
    ] = None,
    parameters_file: Annotated[
        Path | None, _option("parameters-file", "YAML: our names or guided-diffusion's.")
    ] = None,
    preset: Annotated[str | None, _option("preset", f"{PRESET_NAMES}. Default: {DEFAULT_PRESET}.")] = None,
    sampler: Annotated[SamplerName | None, _option("sampler", "Instead of the preset's.")] = None,
    steps: Annotated[int | None, _option("steps", "Sampler steps, instead of the preset's.", min=1)] = None,
    samples: Annotated[
        int | None, _option("samples", "Average K samples; their spread goes to --report-path.", min=1)
    ] = None,
    noise: Annotated[NoiseMode | None, _option("noise", "How slices share noise along z.")] = None,
    smoothing: Annotated[float | None, _option("smoothing", "Gaussian sigma in voxels, 0 = off.", min=0)] = None,
    dilate: Annotated[float | None, _option("dilate", "Grow the mask by so many millimetres.", min=0)] = None,
    seed: Annotated[int | None, _option("seed", "Same seed, same result. Default: 0.", min=0)] = None,
    device: Annotated[str | None, _option("device", "auto, cpu, cuda, cuda:1, mps. Default: auto.")] = None,
    batch_size: Annotated[str, _option("batch-size", "Slices per network pass: auto or a number.")] = "auto",
    precision: Annotated[
        PrecisionName, _option("precision", "Of the network; auto is fp32 on a CPU, bf16 or fp16 on a GPU.")
    ] = PrecisionName.auto,
    resume: Annotated[
        bool, _option("resume", "Keep finished outputs, make the others; wins over --overwrite.")
    ] = False,
    overwrite: Annotated[
        bool, _option("overwrite", "Make existing outputs anew.", envvar="BRATS_INPAINTING_OVERWRITE")
    ] = False,
    keep_dtype: Annotated[bool, _option("keep-dtype", "Write the input's data type instead of float32.")] = False,
    report_path: Annotated[
        Path | None, _option("report-path", "Folder for report.html, run.json, single samples and uncertainty maps.")
    ] = None,
    no_images: NoImages = False,
) -> None:
    """Fill the masked part of every case."""
    if not any((data_path, output_path, image, mask, output)) and (
        folders := os.environ.get("BRATS_INPAINTING_FOLDERS")
    ):
        data_path, output_path = map(Path, folders.split(":"))  # the container's /input and /output
    jobs = _jobs(data_path, output_path, image, mask, output)
    _keep_apart(report_path, output_path)
    from brats_inpainting import parameters

    said = parameters.read(parameters_file) if parameters_file else parameters.Parameters()
    if parameters_file:
        log.info("%s: %s", parameters_file, said)
    flags = {
        "sampler": sampler,
        "steps": steps,
        "samples": samples,
        "noise": noise,
        "smoothing": smoothing,
        "dilate": dilate,
    }
    from brats_inpainting.diffusion import checkpoint
    from brats_inpainting.folder import Run
    from brats_inpainting.infer import Inpainter

    inpainter = Inpainter.load(
        weights or (additional_files_path and checkpoint.find(additional_files_path)),
        preset=preset or said.preset or DEFAULT_PRESET,
        device=device or said.device or "auto",
        batch_size=_whole_number(batch_size),
        precision=cast("Precision", precision.value),
        unet=said.unet,
        diffusion=said.diffusion,
        **said.sampling | {name: value for name, value in flags.items() if value is not None},
    )
    if said.batch_size and batch_size == "auto":
        inpainter.batch_size = min(inpainter.batch_size, said.batch_size)
    run = Run(
        inpainter,
        jobs,
        seed=(said.seed or 0) if seed is None else seed,
        keep_dtype=keep_dtype,
        report_path=report_path,
        quiet=_quiet(),
    )
    run.start("resume" if resume else "overwrite" if overwrite else "error")
    how = inpainter.sampling
    log.info("weights %s", inpainter.weights)
    log.info("%d steps of %s, %d sample(s), seed %d", how.steps, how.sampler, how.samples, run.seed)
    log.info("%d slices at a time", inpainter.batch_size)
    log.debug("%s", how)
    run.go()
    log.info("%d of %d cases filled", len(run.jobs) - len(run.failed), len(run.jobs))
    if report_path:
        _report_of_run({case: {"filled": path} for path, case in jobs.items()}, report_path, run.failed, not no_images)
    _finish(run.failed)


@app.command()
def check(data_path: DataPath) -> None:
    """List every problem of every case at once, without loading the network."""
    from brats_inpainting.data import cases

    failed: dict[str, str] = {}
    found = cases.find(data_path)
    for case in found:
        try:
            loaded = cases.load(case)
        except CaseError as error:
            failed[case.id] = str(error)
        else:
            out.print(f"{'!' if loaded.warnings else '✓'} {loaded.id}: {int(loaded.mask_XYZ.sum()):,} voxels to fill")
    out.print(f"{len(found) - len(failed)} of {len(found)} cases can be filled")
    _finish(failed)


@app.command()
def example(
    output_path: OutputPath,
    seed: Annotated[int, _option("seed", "Place and shape of the masks.", min=0)] = 0,
) -> None:
    """Write a complete example case, made from the ICBM152 template."""
    from brats_inpainting.data.example import write_example

    out.print(f"written: {write_example(output_path, seed=seed)}")


@app.command()
def evaluate(
    predictions: Predictions,
    data_path: DataPath,
    report_path: Annotated[
        Path | None, _option("report-path", "Folder for report.html and the scores as .csv, .json, .md, .tex.")
    ] = None,
    pooled: Annotated[bool, _option("pooled", "Folders of a cross-validation: each holds some of the cases.")] = False,
    published: Annotated[bool, _option("published", "Set the paper's figures, of other data, beside them.")] = False,
    no_images: NoImages = False,
    viewer: Viewer = False,
) -> None:
    """Score filled scans against the truth inside the healthy mask, as the challenge does."""
    from brats_inpainting import evaluate as scoring
    from brats_inpainting import tables

    page = _page(report_path, predictions, images=not no_images, viewer=viewer) if report_path else None
    fills = scoring.find(scoring.names(predictions), data_path, pooled=pooled)
    rows, failed = scoring.evaluate(fills, report_path=report_path, look=page.look if page else None, quiet=_quiet())
    grids = tables.grids(rows, pooled=pooled, published=published)
    for grid in grids:
        wide.print(grid.rich())
    if report_path and page:
        if rows:
            tables.write(rows, grids, report_path)
        out.print(f"written: {page.write(grids, failed, _folders(fills))}")
    _finish(failed)


@app.command()
def report(
    predictions: Predictions,
    data_path: DataPath,
    report_path: Annotated[Path, _option("report-path", "Folder for report.html; that of infer has its run.json.")],
    no_images: NoImages = False,
    viewer: Viewer = False,
) -> None:
    """Make the page about filled scans; the truth need not be known."""
    from brats_inpainting import evaluate as scoring

    page = _page(report_path, predictions, images=not no_images, viewer=viewer)
    _finish(_report(scoring.find(scoring.names(predictions), data_path), report_path, page))


@app.command()
def picture(
    predictions: Predictions,
    data_path: DataPath,
    case: Annotated[list[str], _option("case", "Its id; several make several rows.")],
    output: Annotated[Path, _option("output", "The PNG to write.")],
    plane: Annotated[list[PlaneName] | None, _option("plane", "Default: all three.")] = None,
    slice_: Annotated[int | None, _option("slice", "Default: where the mask is largest.", min=0)] = None,
) -> None:
    """Draw slices for a paper: voided scan, mask, fills, truth side by side (figures 4 and 5 of the paper)."""
    from brats_inpainting import evaluate as scoring
    from brats_inpainting import pictures
    from brats_inpainting.data import volume

    if output.suffix != ".png":
        raise ConfigError(f"{output}: not a PNG\n  Let it end in .png.")
    volume.make_writable(output.parent)
    fills = {found.id: (found, paths) for found, paths in scoring.find(scoring.names(predictions), data_path).items()}
    rows = []
    for case_id in case:
        if case_id not in fills:
            raise ConfigError(f"{case_id}: no such case in {data_path}\n  There are: {', '.join(fills)}.")
        exam = scoring.examine(*fills[case_id], truth_needed=False)
        _finish(exam.failed)
        mask_XYZ = exam.mask_XYZ * pictures.white(exam.voided_XYZ)
        views = {"voided": exam.voided_XYZ, "mask": mask_XYZ, **exam.filled}
        for name in plane or reversed(pictures.PLANES):
            cut = pictures.Plane.through(exam.scored_XYZ, exam.voided_XYZ != 0, str(name), slice_)
            rows.append((f", {case_id}, {name} {cut.index}", cut, views, exam.mask_XYZ))
    pictures.mosaic(rows, output)
    out.print(f"written: {output}")


@app.command()
def baseline(
    method: Annotated[Baseline, _option("method", "How to fill.")],
    data_path: DataPath,
    output_path: OutputPath,
    overwrite: Annotated[bool, _option("overwrite", "Make existing outputs anew.")] = False,
) -> None:
    """Fill every case without a network, to put a model's scores in perspective."""
    from brats_inpainting import baselines

    _finish(baselines.fill_folder(str(method), data_path, output_path, overwrite=overwrite))


@app.command()
def train(
    data_path: Annotated[Path, _option("data-path", "Folder with complete scans, *-t1n.nii.gz.")],
    output_path: OutputPath,
    parameters_file: Annotated[
        Path | None, _option("parameters-file", "Recipe, see workspace/parameters. Default: the paper's.")
    ] = None,
    fold: Annotated[int, _option("fold", "Whose held-out subjects validate: 0 or 1.", min=0, max=1)] = 0,
    cache_path: Annotated[
        Path | None, _option("cache-path", "Folder of the prepared slices. Default: in --output-path.")
    ] = None,
    validation_path: Annotated[
        Path | None, _option("validation-path", "Complete cases that validate, instead of held-out subjects.")
    ] = None,
    resume: Annotated[
        bool, _option("resume", "Go on where an earlier run stopped.", envvar="BRATS_INPAINTING_TRAIN_RESUME")
    ] = False,
    minutes: Annotated[
        float | None,
        _option("minutes", "End after so long, preparation included, and the step under way; --resume goes on.", min=0),
    ] = None,
) -> None:
    """Train a network; under torchrun or accelerate launch, on several GPUs and nodes."""
    from brats_inpainting import parameters
    from brats_inpainting.config import TrainConfig

    recipe = parameters.read_recipe(parameters_file) if parameters_file else TrainConfig()
    from brats_inpainting.train import train as run

    weights = run(
        data_path,
        output_path,
        recipe,
        fold=fold,
        resume=resume,
        cache_path=cache_path,
        validation_path=validation_path,
        minutes=minutes,
    )
    out.print(f"written: {weights}")


@app.command()
def export(
    state: Annotated[Path, _option("state", "A training run's folder, or a file of its state folder.")],
    output_path: OutputPath,
) -> None:
    """Write a training state as weights: our .safetensors, and guided-diffusion's .pt files."""
    from brats_inpainting.state import export_state

    for path in export_state(state, output_path):
        out.print(f"written: {path}")


@app.command()
def info() -> None:
    """Say which version, presets, weights and devices there are."""
    from brats_inpainting import about

    for name, text in about.facts().items():
        out.print(f"{name:10} {text}")


@app.command()
def benchmark(
    data_path: Annotated[
        Path | None, _option("data-path", "Folder of cases to be filled. Default: the example case.")
    ] = None,
    report_path: Annotated[
        Path | None, _option("report-path", "Folder for benchmark.json, benchmark.md and roofline.png.")
    ] = None,
    part: Annotated[
        list[BenchmarkPart] | None, _option("part", "What to measure; may be given several times. Default: all.")
    ] = None,
    network: Annotated[
        list[BenchmarkNetwork] | None, _option("network", "Which; may be given several times. Default: both.")
    ] = None,
    rounds: Annotated[int, _option("rounds", "Turns that our network and its peers take.", min=1)] = 5,
    device: Annotated[str, _option("device", "auto, cpu, cuda.")] = "auto",
    precision: Annotated[PrecisionName, _option("precision", "Of the network; auto is what infer takes.")] = (
        PrecisionName.auto
    ),
) -> None:
    """Measure speed and memory: the machine's limits, a pass beside them and beside others, a whole case by phase."""
    from brats_inpainting.benchmark import report as reporting
    from brats_inpainting.benchmark import run
    from brats_inpainting.data import volume

    if report_path:
        volume.make_writable(report_path)
    results = run.run(
        device=device,
        precision=None if precision == "auto" else cast("Precision", precision.value),
        networks=network or run.NETWORKS,
        parts=part or run.PARTS,
        rounds=rounds,
        data_path=data_path,
    )
    for grid in reporting.grids(results):
        wide.print(grid.rich())
    for path in reporting.write(results, report_path) if report_path else ():
        out.print(f"written: {path}")


def _keep_apart(report_path: Path | None, *filled: Path | None) -> None:
    """Refuse a report among the filled scans: graders read every file there."""
    for folder in filled:
        if report_path and folder and report_path.resolve().is_relative_to(folder.resolve()):
            raise ConfigError(f"{report_path}: lies in {folder}, which holds filled scans only\n  Move it.")


def _page(report_path: Path, predictions: Sequence[Path] = (), **settings: bool) -> Page:
    from brats_inpainting.data import volume
    from brats_inpainting.report import Page

    _keep_apart(report_path, *predictions)
    volume.make_writable(report_path)
    return Page(report_path, **settings)


def _report(
    fills: dict[Case, dict[str, Path]], report_path: Path, page: Page, failed: dict[str, str] | None = None
) -> dict[str, str]:
    """Write the page about filled scans, but for those that failed before; return what failed then and now."""
    from brats_inpainting import evaluate as scoring
    from brats_inpainting import tables

    failed = failed or {}
    done = {case: paths for case, paths in fills.items() if case.id not in failed}
    rows, unread = scoring.evaluate(done, truth_needed=False, report_path=report_path, look=page.look, quiet=_quiet())
    out.print(f"written: {page.write(tables.grids(rows), failed | unread, _folders(fills))}")
    return failed | unread


def _report_of_run(fills: dict[Case, dict[str, Path]], report_path: Path, failed: dict[str, str], images: bool) -> None:
    """Write the page about what infer filled; infer does not fail for it."""
    try:
        _report(fills, report_path, _page(report_path, images=images), failed)
    except (ConfigError, OSError) as error:
        log.warning("no report.html: %s", error)


def _folders(fills: dict[Case, dict[str, Path]]) -> set[Path]:
    return {path.parent for case, paths in fills.items() for path in (case.image, case.mask, *paths.values())}


def _quiet() -> bool:
    return log.level >= logging.WARNING


def _jobs(
    data_path: Path | None, output_path: Path | None, image: Path | None, mask: Path | None, output: Path | None
) -> dict[Path, Case]:
    """Return what is to be filled and where each result goes."""
    from brats_inpainting.data import cases

    single = {"--image": image, "--mask": mask, "--output": output}
    many = {"--data-path": data_path, "--output-path": output_path}
    for ours, others in ((single, many), (many, single)):
        if any(ours.values()) and (missing := [name for name, value in ours.items() if not value]):
            raise ConfigError(f"{' and '.join(missing)} missing\n  {', '.join(ours)} belong together.")
        if all(ours.values()) and any(others.values()):
            raise ConfigError("a single pair and a folder exclude each other\n  Run the command twice.")
    if data_path and output_path:
        return {output_path / cases.output_name(case.id): case for case in cases.find(data_path)}
    if not (image and mask and output):
        raise ConfigError("nothing to fill\n  Give --data-path and --output-path, or --image, --mask and --output.")
    return _pair(image, mask, output)


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


def _finish(failed: dict[str, str]) -> None:
    """List the failures last, and say by the exit code that there were some."""
    if failed:
        sys.stderr.write("\n".join([f"{len(failed)} failed:", *failed.values()]) + "\n")
        raise typer.Exit(SOME_FAILED)


def _normalised(args: list[str]) -> list[str]:
    """Let --data_path be --data-path, -v and --quiet stand anywhere, and options without a task be those of infer."""
    args = [
        "=".join([arg.split("=", 1)[0].replace("_", "-"), *arg.split("=", 1)[1:]]) if arg.startswith("--") else arg
        for arg in args
    ]
    loudness = [arg for arg in args if arg in LOUDNESS]
    rest = [arg for arg in args if arg not in LOUDNESS]
    if args and (not rest or (rest[0].startswith("-") and rest[0] not in ("-h", "--help", "--version"))):
        rest.insert(0, "infer")
    return loudness + rest


def _interrupted(number: int, _frame: FrameType | None) -> NoReturn:
    sys.stderr.write("interrupted; finished cases are kept, --resume goes on\n")
    raise SystemExit(128 + number)


def main(args: list[str] | None = None) -> None:
    """Run the app; turn every outcome into its exit code and a message that says what to do."""
    host.settle()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupted)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr does: a name must not end a run where it is told
    try:
        app(_normalised(sys.argv[1:] if args is None else args), prog_name="brats-inpainting")
    except InpaintingError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(UNUSABLE)
