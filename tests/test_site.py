"""The site is built from the pages without a warning and asks no other host for anything; its notebook runs."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "docs" / "notebook.ipynb"
LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "link": "href"}
ADDRESS = re.compile(r"(https?:)?//")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder]
    silent = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=silent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


class Loaded(HTMLParser):
    """Collects what a page loads, and the classes of its elements."""

    def __init__(self, page):
        super().__init__()
        self.addresses, self.classes = [], set()
        self.feed(page.read_text())

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.classes |= {*(values.get("class") or "").split()}
        if tag in LOADED and LOADED[tag] in values:
            self.addresses.append(values[LOADED[tag]])


def test_pages_load_nothing_from_another_host(site):
    pages = {page.name: Loaded(page) for page in site.glob("*.html")}
    assert len(pages) > len([*(ROOT / "docs").glob("*.md")])  # the notebook and 404
    for name, page in pages.items():
        assert len(page.addresses) > 3
        assert not [address for address in page.addresses if ADDRESS.match(address)], name
        assert "mermaid" not in page.classes, f"{name}: the theme would load mermaid from unpkg.com"
    for style in site.rglob("*.css"):
        assert not re.findall(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", style.read_text()), style.name


def test_the_reference_has_the_public_names(site):
    page = (site / "reference.html").read_text()
    for name in ("inpainter.Inpainter.inpaint", "fill.fill_folder", "layouts.BidsDataset", "errors.CaseError"):
        assert f'id="brats_inpainting.{name}"' in page


def test_the_notebook_is_a_page_with_its_pictures(site):
    page = (site / "notebook.html").read_text()
    pictures = re.findall(r'src="([^"]+\.png)"', page)
    assert len(pictures) == 7
    assert all((site / picture).is_file() for picture in pictures)
    assert NOTEBOOK.stat().st_size < 400_000


def printed(path):
    """Return what the cells of a notebook printed, and all numbers in it."""
    import nbformat

    outputs = [output for cell in nbformat.read(path, 4).cells for output in cell.get("outputs", ())]
    assert {output.output_type for output in outputs} <= {"stream", "display_data"}
    assert all(output.name == "stdout" for output in outputs if output.output_type == "stream")
    text = "".join(output.text for output in outputs if output.output_type == "stream")
    return re.sub(r"[\d.]+", "#", text), [float(number) for number in re.findall(r"\d+(?:\.\d+)?", text)]


@pytest.mark.slow
def test_the_notebook_runs_and_prints_what_its_page_shows(tmp_path):
    command = [sys.executable, "-m", "studies.notebook", "--output", tmp_path / "run.ipynb"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (text, numbers), (shown, known) = printed(tmp_path / "run.ipynb"), printed(NOTEBOOK)
    assert text == shown
    assert numbers == pytest.approx(known, rel=0.05, abs=0.05)  # processors differ in the last bits of a fill
