"""The table of faults.yaml is up to date: each text is where it says, and each test exists."""

import pytest

from .faults import ROOT, faults

FAULTS = faults()


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.name for fault in FAULTS])
def test_a_fault_can_be_put_in_and_its_test_exists(fault):
    assert (ROOT / "project" / "brats_inpainting" / fault.file).read_text().count(fault.old) == 1
    assert fault.new != fault.old
    file, _, test = fault.test.partition("::")
    assert f"\ndef {test.partition('[')[0]}(" in (ROOT / "tests" / file).read_text()
