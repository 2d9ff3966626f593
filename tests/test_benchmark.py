"""The command benchmark: one case at each preset, with its time and memory; and how its processes are set up."""

import json
import os
import subprocess
import sys

import pytest

from brats_inpainting import cli, host, memory
from brats_inpainting.benchmark import apart
from brats_inpainting.config import PRESETS

from .conftest import lesion, write_case

SHAPE = (64, 64, 12)


@pytest.mark.slow
def test_a_case_is_measured_at_each_preset(tmp_path, tiny_weights, capsys):
    write_case(tmp_path / "cases", "a")
    where = ["--data-path", tmp_path / "cases", "--report-path", tmp_path / "report", "--weights", tiny_weights]
    asked = ["benchmark", "--preset", "fast", "--preset", "uncertainty", "--device", "cpu", "--rounds", "2", *where]
    with pytest.raises(SystemExit) as ended:
        cli.main([str(word) for word in asked])
    assert not ended.value.code
    written = json.loads((tmp_path / "report" / "benchmark.json").read_text())
    assert written["machine"]["CPUs"] == str(host.cpus())
    assert [cost["preset"] for cost in written["presets"]] == ["fast", "uncertainty"]
    slices = lesion(SHAPE).any(axis=(0, 1)).sum()
    for cost in written["presets"]:
        how = PRESETS[cost["preset"]][2]
        assert (cost["weights"], cost["windows"]) == ("tiny", slices)
        assert cost["passes"] == slices * how.passes * how.samples
        assert len(cost["seconds"]) == 2
        assert 1e8 < cost["memory"] < 2e9  # torch alone takes the first
    assert f"{written['presets'][0]['memory'] / 1e9:.2f} GB" in capsys.readouterr().out
    assert "| uncertainty | tiny | fp32 |" in (tmp_path / "report" / "benchmark.md").read_text()


def test_an_unknown_preset_exits_with_2(tmp_path, capfd):
    write_case(tmp_path, "a")
    with pytest.raises(SystemExit) as ended:
        cli.main(["benchmark", "--preset", "quick", "--data-path", str(tmp_path)])
    assert ended.value.code == 2
    assert "quick" in capfd.readouterr().err


def grown(turns):
    """Bytes that a process grows by the page while it takes and frees 64 MB so many times."""
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(turns):
        b"1" * 2**26
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * os.sysconf("SC_PAGESIZE")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's own setting")
def test_memory_that_was_freed_is_used_again():
    assert apart(grown, 5) < 2 * 2**26  # without it, 5 × 64 MB


def test_what_the_environment_says_is_left_alone():
    settled = "import os; from brats_inpainting import runtime; runtime.settle(); print(os.environ['GOMP_SPINCOUNT'])"
    environment = os.environ | {"GOMP_SPINCOUNT": "7"}
    done = subprocess.run([sys.executable, "-c", settled], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "7\n"
    assert host.cpus() >= 1
    assert memory.peak() > 1e8
