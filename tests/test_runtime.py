"""Process settings are the same in the container, as environment variables, as in every other process."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from brats_inpainting import runtime

DOCKERFILE = (Path(__file__).parents[1] / "Dockerfile").read_text()
ENVIRONMENT = dict(re.findall(r"\b((?:GOMP|MALLOC)_\w+)=(\S+)", DOCKERFILE))
GROWTH = """
import resource
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    b"1" * 2**26
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * resource.getpagesize())
"""


def test_the_dockerfile_sets_the_values_that_settle_sets():
    malloc = {name: str(value) for name, (_, value) in runtime.MALLOC.items()}
    assert {"GOMP_SPINCOUNT": runtime.SPINCOUNT} | malloc == ENVIRONMENT


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's own setting")
def test_with_the_dockerfiles_environment_freed_memory_is_used_again():
    done = subprocess.run([sys.executable, "-c", GROWTH], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 2 * 2**26  # without it, 5 × 64 MB
