"""The licences of everything that runs with this software, read by pip-licenses."""

import json
import subprocess
import sys
from importlib.metadata import requires

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from studies import tables

CORE, EXTRAS = ("",), ("", "cluster", "eval", "report", "train")  # the image has all but cluster
CUDA = ("nvidia-", "cuda-", "triton")  # come with PyTorch's CUDA build only


def runtime(extras, name="brats-inpainting", found=None):
    """Return the names of all distributions that a package needs here with some of its extras."""
    found = set() if found is None else found
    for text in requires(name) or []:
        need = Requirement(text)
        wanted = not need.marker or any(need.marker.evaluate({"extra": extra}) for extra in extras)
        if wanted and (key := canonicalize_name(need.name)) not in found and not key.startswith(CUDA):
            if key != "brats-inpainting":
                found.add(key)
            runtime(need.extras or CORE, need.name, found)
    return found


def declared(names):
    """Return name → (release without the name of the build, licence), as pip-licenses reads them."""
    command = (sys.executable, "-m", "piplicenses", "--with-system", "--format=json", "--packages", *names)
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return {canonicalize_name(one["Name"]): (one["Version"].partition("+")[0], one["License"]) for one in found}


def table():
    """Return the table of docs/licences.md as Markdown lines."""
    core, rows = runtime(CORE), sorted(declared(runtime(EXTRAS)).items())
    body = [[name, *told, "core" if name in core else "extras"] for name, told in rows]
    return tables.markdown(["package", "version", "licence", "needed by"], body)
