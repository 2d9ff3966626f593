"""Run docs/notebook.ipynb, and show it as a page of the site (a hook of mkdocs.yml).

usage: python -m studies.notebook [--output FILE]
"""

import argparse
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter
from nbconvert.preprocessors import ExecutePreprocessor

NOTEBOOK = Path(__file__).parents[1] / "docs" / "notebook.ipynb"
SECONDS = 3600  # for one cell, on a busy machine


def on_files(files, config):
    """Add the notebook and its pictures to the files of the site."""
    from mkdocs.structure.files import File

    body, resources = MarkdownExporter().from_filename(str(NOTEBOOK))
    files.append(File.generated(config, "notebook.md", content=body))
    for name, picture in resources["outputs"].items():
        files.append(File.generated(config, name, content=picture))
    return files


def run(output=NOTEBOOK):
    """Execute every cell and save the notebook with what came out, without times and machine."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    runner = ExecutePreprocessor(timeout=SECONDS, kernel_name="python3", record_timing=False)
    runner.preprocess(notebook, {"metadata": {"path": str(NOTEBOOK.parents[1])}})
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    nbformat.write(notebook, output)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=NOTEBOOK)
    run(parser.parse_args().output)
