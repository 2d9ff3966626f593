"""The command line: thin functions that parse. Heavy imports wait until a task needs them."""

from brats_inpainting.cli import fill, judge, learn, machine
from brats_inpainting.cli.app import common, main

__all__ = ["common", "fill", "judge", "learn", "machine", "main"]
