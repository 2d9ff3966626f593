"""Commands for training: train, export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from brats_inpainting.cli.app import OutputPath, app, folder, option, out


@app.command()
def train(
    data_path: Annotated[Path, folder("data-path", "Folder with complete scans, *-t1n.nii.gz.")],
    output_path: OutputPath,
    parameters_file: Annotated[
        Path | None, option("parameters-file", "Training recipe, see workspace/parameters. Default: the paper's.")
    ] = None,
    fold: Annotated[int, option("fold", "Fold whose held-out subjects validate: 0 or 1.", min=0, max=1)] = 0,
    cache_path: Annotated[
        Path | None, folder("cache-path", "Cache of prepared scans. Default: in the output folder.")
    ] = None,
    validation_path: Annotated[
        Path | None, folder("validation-path", "Complete cases for validation, instead of held-out subjects.")
    ] = None,
    initial_weights: Annotated[
        Path | None, option("initial-weights", "Start from this .safetensors; the teacher of a consistency model.")
    ] = None,
    resume: Annotated[
        bool, option("resume", "Continue an earlier run.", envvar="BRATS_INPAINTING_TRAIN_RESUME")
    ] = False,
    minutes: Annotated[
        float | None,
        option("minutes", "Stop after this time, preparation included; --resume continues.", min=0),
    ] = None,
) -> None:
    """Train a network. Use torchrun or accelerate launch for several GPUs or nodes."""
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
        initial_weights=initial_weights,
        minutes=minutes,
    )
    out.print(f"written: {weights}")


@app.command()
def export(
    state: Annotated[
        Path, folder("state", "Folder of a training run, or a file in its state folder.", metavar="<path>")
    ],
    output_path: OutputPath,
) -> None:
    """Export a training state: .safetensors and guided-diffusion .pt."""
    from brats_inpainting.state import export_state

    for path in export_state(state, output_path):
        out.print(f"written: {path}")
