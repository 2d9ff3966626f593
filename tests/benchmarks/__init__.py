"""Measurements that are too long for a test: python -m tests.benchmarks.NAME, from the root of a clone."""

from brats_inpainting import host

host.settle()  # before any of them imports torch
