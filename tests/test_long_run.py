"""A short version of the long run; `python -m tests.reliability.long_run` is the whole one."""

import pytest

from .reliability import long_run


@pytest.mark.slow
def test_memory_and_open_files_stay_as_they_are(tmp_path):
    _, notes, slope = long_run.run(40, tmp_path)
    files = [files for _, files in notes]
    assert max(files) - min(files) <= 3  # those that the reader and the writer have open just then
    assert slope < 50  # MB per 100 cases; cases that stay in memory add 5 MB each, for three frames of 224 × 224 × 8
