"""A short version of the long run; `python -m tests.reliability.long_run` is the whole one."""

from .reliability import long_run


def test_memory_and_open_files_stay_as_they_are(tmp_path):
    work, slope = long_run.run(40, tmp_path)
    files = [files for _, files in work.notes]
    assert max(files) - min(files) <= 1  # the file under way
    assert (
        slope < 50
    )  # MB per 100 cases; seen: -6 to 7. Cases that stay in memory add 5 MB each, for three frames of 224²×8
