"""What comes with the software: exact versions that fit together, and licences that bind nobody who uses it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from studies import licences

ROOT = Path(__file__).parents[1]
COPYLEFT = re.compile(r"GPL|MPL|EPL|CDDL|EUPL|SSPL|CeCILL", re.IGNORECASE)
DECLARED = licences.declared(licences.runtime(licences.EXTRAS))


def test_the_installed_packages_fit_together():
    told = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stdout


def test_every_requirement_is_pinned_exactly():
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+(; sys_platform == 'linux')?", line) for line in lines)


@pytest.mark.parametrize("name", [name for name in DECLARED if name != "setuptools"])  # the venv's own
def test_what_runs_is_what_is_pinned(name):
    lines = (line.partition(";")[0] for line in (ROOT / "requirements.txt").read_text().splitlines())
    pins = dict(line.split("==") for line in lines if "==" in line)
    assert {key.lower().replace("_", "-"): pin for key, pin in pins.items()}[name] == DECLARED[name][0]


def test_no_core_package_is_under_a_copyleft_licence_and_of_the_extras_only_tqdm():
    assert {name for name, (_, licence) in DECLARED.items() if COPYLEFT.search(licence)} == {"tqdm"}
    assert "tqdm" not in licences.runtime(licences.CORE)
    assert "inpainting" not in DECLARED


def test_every_package_declares_its_licence():
    assert set(DECLARED) == licences.runtime(licences.EXTRAS)


def test_a_wheelhouse_of_another_python_is_refused_before_anything_is_installed(tmp_path):
    other = "python3 -c 'import sys; sys.version_info = (3, 12, 1); exec(sys.argv[3])' --"
    command = ("make", "wheelhouse", f"WHEELHOUSE={tmp_path / 'wheelhouse'}", f"PYTHON={other}")
    told = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert told.returncode != 0
    assert "Python 3.11 is needed: make wheelhouse PYTHON=python3.11" in told.stderr
    assert not list(tmp_path.iterdir())
