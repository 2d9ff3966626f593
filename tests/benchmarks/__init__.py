"""Measurements that are too long for a test: python -m tests.benchmarks.NAME, from the root of a clone."""

from brats_inpainting import runtime

runtime.settle()  # before any of them imports torch
