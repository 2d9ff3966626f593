"""The Typer app and what its commands share: options, logging, exit codes."""

from __future__ import annotations

import importlib.metadata
import io
import logging
import signal
import sys
from collections.abc import Collection
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from typer.core import TyperCommand

from brats_inpainting import runtime
from brats_inpainting.cli import bids_app
from brats_inpainting.config import PRECISIONS
from brats_inpainting.container import offers
from brats_inpainting.errors import InpaintingError
from brats_inpainting.progress import console

UNUSABLE, SOME_FAILED = 2, 3  # exit codes; 0 is success, 1 an internal error, 130 and 143 interruptions

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,  # rich's panels cut option names and values on narrow terminals
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": lambda token: token.replace("_", "-"),  # --data_path is --data-path
    },
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Fill lesions in brain MRI with plausible healthy tissue. Research use only.\n\n"
    "As a BIDS App: brats-inpainting BIDS_DIR OUTPUT_DIR participant, then any options of infer.",
)
log = logging.getLogger("brats_inpainting")
out = Console(highlight=False, soft_wrap=True, markup=False)
wide = Console(highlight=False, markup=False, width=250)  # for tables: files get whole lines

GROUPS = {  # of options in the help of infer and baseline
    "Masks": ("label", "threshold", "invert_mask", "brain_mask", "dilate"),
    "Network and sampling": (
        *("weights", "additional_files_path", "parameters_file", "preset", "sampler", "steps", "samples", "noise"),
        *("order", "smoothing", "no_resample", "seed"),
    ),
    "Results": ("resume", "overwrite", "keep_dtype", "report_path", "no_images"),
    "Hardware": ("device", "batch_size", "precision", "no_cuda_graphs", "cluster"),
}
VERBOSITY = ("-v", "--verbose", "-q", "--quiet")


class GroupedCommand(TyperCommand):
    """A command whose help lists its options by ``GROUPS``."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write one list for each group, first the options of none."""
        group_of = {name: group for group, names in GROUPS.items() for name in names}
        lists: dict[str, list[tuple[str, str]]] = {group: [] for group in ("Options", *GROUPS)}
        for parameter in self.get_params(ctx):
            if line := parameter.get_help_record(ctx):
                lists[group_of.get(parameter.name, "Options")].append(line)
        for group, lines in lists.items():
            if lines:
                with formatter.section(group):
                    formatter.write_dl(lines)


def option(name: str, text: str, *aliases: str, **settings: Any) -> Any:
    """Declare an option with its help and aliases."""
    return typer.Option(f"--{name}", *aliases, help=text, **settings)


def folder(name: str, text: str, *aliases: str, **settings: Any) -> Any:
    """Declare an option for a folder; ``.`` and ``..`` become full paths, so that messages name a folder."""

    def parse(given: str) -> Path:
        if not given:
            raise typer.BadParameter("it is empty. Give a folder; . is the current one.")
        return Path(given).resolve() if Path(given).name in ("", "..") else Path(given)

    return option(name, text, *aliases, **{"parser": parse, "metavar": "<folder>"} | settings)


def choice(names: Collection[str], shown: Collection[str] = ()) -> dict[str, Any]:
    """Return the settings of an option with a fixed set of values; help lists ``shown``, or all of them."""

    def parse(given: str) -> str:
        if given not in names:
            raise typer.BadParameter(f"{given!r} is not one of {', '.join(shown or names)}.")
        return given

    return {"parser": parse, "metavar": f"[{'|'.join(shown or names)}]"}


PrecisionName = Annotated[
    str,
    option(
        "precision",
        "Network precision. auto: fp32 on a CPU; on a GPU bf16, or fp16 on older ones.",
        **choice(["auto", *PRECISIONS]),
    ),
]
DataPath = Annotated[Path, folder("data-path", "Folder with one sub-folder per case.")]
OutputPath = Annotated[Path, folder("output-path", "Folder that receives the results.")]
Predictions = Annotated[
    list[Path], folder("predictions", "Folder with {id}-t1n-inference.nii.gz; repeat to compare others with the first.")
]
NoImages = Annotated[bool, option("no-images", "Leave images out of report.html.")]
Viewer = Annotated[
    bool,
    option("viewer", "Embed an interactive viewer of all slices in report.html.", hidden=not offers("nilearn")),
]
WeightsFile = Annotated[
    Path | None, option("weights", "Weights: a .safetensors or .pt file, or bundled: volume-2 (default), small-2.")
]


def _version(wanted: bool) -> None:
    if wanted:
        out.print(importlib.metadata.version("brats-inpainting"))
        raise typer.Exit


@app.callback()
def common(
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Log more details.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Log warnings and errors only.")] = False,
    version: Annotated[bool, option("version", "Print the version.", is_eager=True, callback=_version)] = False,
) -> None:
    """Configure logging."""
    level = logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO
    handler = logging.Handler()
    handler.emit = lambda record: console.print(record.getMessage())  # type: ignore[method-assign]
    log.handlers, log.propagate = [handler], False
    log.setLevel(level)
    logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)  # its warnings on headers name no file


def quiet() -> bool:
    """Return whether only warnings and errors are logged."""
    return log.level >= logging.WARNING


def finish(failed: dict[str, str]) -> None:
    """Print the reasons of failures, if any, and exit with code 3."""
    if failed:
        sys.stderr.write("\n".join([f"{len(failed)} failed:", *failed.values()]) + "\n")
        raise typer.Exit(SOME_FAILED)


def _normalised(args: list[str]) -> list[str]:
    """Move -v and -q to the front, translate the form of BIDS Apps, insert ``infer`` if no command is given."""
    verbosity = [arg for arg in args if arg in VERBOSITY]
    rest = [arg for arg in args if arg not in VERBOSITY]
    if rest and rest[0] not in typer.main.get_group(app).commands:
        rest = bids_app.translated(rest) or rest
    if args and (not rest or (rest[0].startswith("-") and rest[0] not in ("-h", "--help", "--version"))):
        rest.insert(0, "infer")
    return verbosity + rest


def _interrupted(number: int, _frame: FrameType | None) -> NoReturn:
    sys.stderr.write("interrupted; finished cases are kept, --resume continues\n")
    raise SystemExit(128 + number)


def main(args: list[str] | None = None) -> None:
    """Run the app; print errors of the user and exit with the documented code."""
    runtime.settle()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupted)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as on stderr: odd file names must not stop a run
    try:
        app(_normalised(sys.argv[1:] if args is None else args), prog_name="brats-inpainting")
    except InpaintingError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(UNUSABLE)
