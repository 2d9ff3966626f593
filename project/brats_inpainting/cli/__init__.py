"""The command line. Commands only parse options; heavy imports are deferred until a command runs."""

from brats_inpainting.cli import evaluation, fill, machine, training
from brats_inpainting.cli.app import app, common, main

__all__ = ["app", "common", "evaluation", "fill", "machine", "main", "training"]
