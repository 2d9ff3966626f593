"""A short run of the fuzzer; `python -m tests.reliability.fuzz` is the long one."""

import pytest

from .reliability.fuzz import KINDS, fuzz


@pytest.mark.parametrize("kind", KINDS)
def test_changed_files_are_used_or_refused_in_words(kind, tmp_path):
    outcomes, _ = fuzz(kind, 200, start=7, folder=tmp_path)
    assert outcomes.total() >= 200
    refused = outcomes.total() - outcomes["used"]
    assert min(outcomes["used"], refused) > 5  # 17 were seen: files that are all refused, or all used, test little
    assert refused == outcomes[{"nifti": "CaseError", "yaml": "ConfigError", "checkpoint": "CheckpointError"}[kind]]
