"""One self-contained page about a run: what was filled, case by case, the worst first. No network, opens from disk.

Shapes: X Y Z a volume in LPS; R C rows and columns of a picture.
"""

from __future__ import annotations

import base64
import importlib.util
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from scipy import ndimage

from brats_inpainting import container, record
from brats_inpainting.evaluate import Exam, Row
from brats_inpainting.files import atomic_write
from brats_inpainting.host import muted
from brats_inpainting.pictures import PLANES, Plane, white
from brats_inpainting.tables import Grid, known_metrics

PAGE = "report.html"
MARGIN = 5  # voxels around the mask that are compared with its inside
AROUND, REST = "around the mask", "rest of the tissue"
STYLES = {"truth": "truth", AROUND: "rest", REST: "rest"}  # of the lines in charts; models have colours
BINS = np.linspace(0, 1.2, 49)  # of the histogram, in shares of white
UNCERTAINTY, DIFFERENCE = "inferno", "berlin"  # matplotlib's colormaps: black is none, blue is darker, red brighter
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


class Picture(NamedTuple):
    """A view of a plane: its name, an image as a data URI, and what can be seen in it, in words."""

    view: str
    image: str
    words: str


class Shown(NamedTuple):
    """A plane of a case: caption, what is on its left, a picture per view, the mask's outline, its ends in per cent."""

    caption: str
    left: str
    pictures: list[Picture]
    outline: str
    low: float
    high: float


class Curve(NamedTuple):
    """A line of a chart: its name, its style, and its points in per cent of the chart."""

    name: str
    style: str
    points: str


class Chart(NamedTuple):
    """A small line chart: title, what goes across, the ends of both axes, and its lines."""

    title: str
    across: str
    first: str
    last: str
    lowest: str
    highest: str
    curves: list[Curve]


@dataclass
class Section:
    """All that the page says of a case."""

    id: str
    rows: list[Row]
    planes: list[Shown] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)
    viewer: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


class Page:
    """The page of a run; ``look`` is told each case, ``write`` puts them together."""

    def __init__(self, folder: Path, *, images: bool = True, viewer: bool = False) -> None:
        """Make a page in ``folder``.

        Args:
            folder: receives report.html; if it holds the run.json of ``infer``, its settings are shown.
            images: show pictures of the brains; without, numbers and charts only.
            viewer: embed the volumes, for an interactive view of each case (nilearn's).

        Raises:
            ConfigError: when what the page needs is not installed.
        """
        if missing := [name for name in ("jinja2", "matplotlib", "PIL") if not importlib.util.find_spec(name)]:
            raise container.missing(f"the report needs {' and '.join(missing)}", "report")
        if viewer and not importlib.util.find_spec("nilearn"):
            raise container.missing("the viewer needs nilearn", "example")
        self.folder, self.images, self.viewer = folder, images, viewer and images
        self.sections: dict[str, Section] = {}
        self.one_at_a_time = Lock()

    def look(self, exam: Exam, rows: list[Row]) -> None:
        """Take in a case while its volumes are in memory."""
        section = Section(exam.id, rows, charts=_charts(exam), facts=exam.facts)
        if self.images:
            section.planes = [_plane(exam, name) for name in reversed(PLANES)]
        if self.viewer:
            with self.one_at_a_time:
                section.viewer = _viewer(exam)
        self.sections[exam.id] = section

    def write(self, grids: Sequence[Grid], failed: dict[str, str], hidden: Iterable[Path] = ()) -> Path:
        """Write the page.

        Args:
            grids: the tables of all cases.
            failed: which cases could not be filled or looked at, and why.
            hidden: folders that must not be told where a reason names them.
        """
        from jinja2 import Environment, PackageLoader

        known = next((section.facts for section in self.sections.values() if section.facts), {})
        run = record.read(self.folder) if known else {}
        rows = [row for section in self.sections.values() for row in section.rows]
        shown = known_metrics(rows)
        template = Environment(loader=PackageLoader("brats_inpainting"), autoescape=True).get_template(PAGE)
        text = template.render(
            sections=sorted(self.sections.values(), key=_worst_first),
            order="lowest SSIM" if "ssim" in shown else "strongest stripes",
            metrics=shown,
            grids=[grid for grid in grids if grid.title != "Cases"],
            failed={name: _without(hidden, reason) for name, reason in failed.items()},
            settings=_flat(run.get("settings", {}) | {k: run[k] for k in ("device", "threads") if k in run}),
            versions=run.get("versions", {"brats-inpainting": version("brats-inpainting")}),
            weights=run.get("weights", ""),
            model=known.get("model", ""),
            images=self.images,
        )
        with atomic_write(self.folder / PAGE) as unfinished:
            unfinished.write_text(text, encoding="utf-8")
        return self.folder / PAGE


def _worst_first(section: Section) -> tuple[float, float, str]:
    """Order by the first model's SSIM, the lowest first; where no truth is known, by stripes, the strongest first."""
    row = section.rows[0]
    return (row.ssim, 0.0, section.id) if np.isfinite(row.ssim) else (1.0, -row.stripe_index, section.id)


def _plane(exam: Exam, name: str) -> Shown:
    reference_XYZ = exam.voided_XYZ if exam.truth_XYZ is None else exam.truth_XYZ
    plane, level = Plane.through(exam.scored_XYZ, exam.voided_XYZ != 0, name), white(reference_XYZ)
    known = {"voided": exam.voided_XYZ, **exam.filled}
    greys = {view: plane.cut(volume_XYZ) / level for view, volume_XYZ in known.items()}
    images = {view: np.repeat(grey_RC[..., None].clip(0, 1), 3, axis=2) for view, grey_RC in greys.items()}
    scored_RC, mask_RC = plane.cut(exam.scored_XYZ), plane.cut(exam.mask_XYZ)
    if exam.truth_XYZ is not None:
        for model in exam.fills:
            off_RC = np.clip(greys[model] - greys["truth"], -0.5, 0.5) + 0.5
            view = f"{model} − truth" if len(exam.fills) > 1 else "difference from the truth"
            images[view] = np.where(scored_RC[..., None], _coloured(off_RC, DIFFERENCE), images["truth"] * 0.5)
    if exam.std_XYZ is not None:
        std_RC = np.clip(plane.cut(exam.std_XYZ) / level / 0.1, 0, 1)
        images["uncertainty"] = np.where(mask_RC[..., None], _coloured(std_RC, UNCERTAINTY), images["voided"] * 0.5)
    where = f"{name}, slice {plane.index}"
    pictures = [Picture(view, _data(image), f"{exam.id}: {view}, {where}") for view, image in images.items()]
    edge_RC = mask_RC & ~ndimage.binary_erosion(mask_RC)
    outline = np.dstack([np.broadcast_to(np.array([1.0, 0.69, 0.0]), (*edge_RC.shape, 3)), edge_RC])
    columns = np.flatnonzero(scored_RC.any(axis=0)) if scored_RC.any() else np.array([0, scored_RC.shape[1]])
    low, high = (100 * column / scored_RC.shape[1] for column in (columns[0] - 3, columns[-1] + 4))
    return Shown(where, plane.left, pictures, _data(outline), max(0.0, low), min(100.0, high))


def _coloured(share_RC: np.ndarray, colormap: str) -> np.ndarray:
    """Map 0 … 1 to the colours of a colormap: R × C × 3 in [0, 1]."""
    from matplotlib import colormaps

    return colormaps[colormap](share_RC)[..., :3]


def _data(image_RCc: np.ndarray) -> str:
    """Encode an image, values in [0, 1], without loss."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.rint(image_RCc * 255).astype(np.uint8)).save(buffer, "WEBP", lossless=True, method=4)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _charts(exam: Exam) -> list[Chart]:
    """Draw the mean intensity along z, inside the mask and around it, and the histograms of both."""
    mask_XYZ = exam.scored_XYZ
    if not mask_XYZ.any():
        return []
    level = white(exam.voided_XYZ if exam.truth_XYZ is None else exam.truth_XYZ)
    tissue_XYZ = (exam.voided_XYZ != 0) & ~exam.mask_XYZ
    around_XYZ = tissue_XYZ & _grown(mask_XYZ)
    planes = np.flatnonzero(mask_XYZ.any(axis=(0, 1)))
    profiles = {name: _profile(volume_XYZ, mask_XYZ, planes) / level for name, volume_XYZ in exam.filled.items()}
    profiles[AROUND] = _profile(exam.voided_XYZ, around_XYZ, planes) / level
    shares = {name: _shares(volume_XYZ[mask_XYZ] / level) for name, volume_XYZ in exam.filled.items()}
    shares[REST] = _shares(exam.voided_XYZ[tissue_XYZ] / level)
    return [
        _chart("Mean intensity, slice by slice", "slice", profiles, (planes[0], planes[-1])),
        _chart("Histogram", "intensity, share of white", shares, (BINS[0], BINS[-1]), top=1.5 * _highest(shares)),
    ]


def _grown(mask_XYZ: np.ndarray) -> np.ndarray:
    """Return the mask grown within its axial slices."""
    box = tuple(
        slice(max(0, s.start - MARGIN), s.stop + MARGIN) for s in ndimage.find_objects(mask_XYZ.astype("u1"))[0]
    )
    cross = ndimage.generate_binary_structure(2, 1)[:, :, None]
    grown_XYZ = np.zeros_like(mask_XYZ)
    grown_XYZ[box] = ndimage.binary_dilation(mask_XYZ[box], cross, iterations=MARGIN)
    return grown_XYZ


def _profile(volume_XYZ: np.ndarray, region_XYZ: np.ndarray, planes: np.ndarray) -> np.ndarray:
    """Return the mean in a region of each of some axial slices; NaN where the region does not reach."""
    count_Z = region_XYZ.sum(axis=(0, 1))[planes]
    sum_Z = np.where(region_XYZ, volume_XYZ, 0).sum(axis=(0, 1), dtype=float)[planes]
    return np.divide(sum_Z, count_Z, out=np.full(len(planes), np.nan), where=count_Z > 0)


def _shares(values: np.ndarray) -> np.ndarray:
    counts = np.histogram(values, BINS)[0]
    return counts / max(1, counts.sum())


def _highest(shares: dict[str, np.ndarray]) -> float:
    """Return the peak of real tissue; that of a constant fill would flatten all else."""
    return max(float(values.max()) for name, values in shares.items() if name in STYLES)


def _chart(
    title: str, across: str, lines: dict[str, np.ndarray], ends: tuple[float, float], top: float = np.inf
) -> Chart:
    every = np.concatenate([values[np.isfinite(values)] for values in lines.values()])
    low, high = (float(every.min()), min(top, float(every.max()))) if every.size else (0.0, 1.0)
    scale = 100 / ((high - low) or 1.0)
    curves = []
    for number, (name, values) in enumerate(lines.items()):
        x = np.linspace(0, 100, len(values)) if len(values) > 1 else np.array([50.0])
        known = np.isfinite(values)
        pairs = zip(x[known], 100 - scale * (values[known] - low), strict=True)
        curves.append(
            Curve(name, STYLES.get(name, f"model{number % 5}"), " ".join(f"{a:.1f},{b:.1f}" for a, b in pairs))
        )
    return Chart(title, across, f"{ends[0]:g}", f"{ends[1]:g}", f"{low:.2g}", f"{high:.2g}", curves)


def _viewer(exam: Exam) -> str:
    """Return nilearn's viewer of the first fill with the mask, a page of its own."""
    from nilearn.plotting import view_img

    filled, mask = (
        nib.nifti1.Nifti1Image(np.asarray(v, np.float32), LPS)
        for v in (next(iter(exam.fills.values())), exam.scored_XYZ)
    )
    with muted():  # numpy warns of nilearn
        view = view_img(
            mask, bg_img=filled, threshold=0.5, opacity=0.3, resampling_interpolation="nearest", colorbar=False
        )
    return re.sub(r"<link[^>]*>", "", view.get_standalone())  # its icon would be asked of the network


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """Return nested settings as one level, each with its group's name: there are steps of sampling and of diffusion."""
    return {
        name: value
        for group, given in settings.items()
        for name, value in (
            {f"{group} {key}": v for key, v in given.items()} if isinstance(given, dict) else {group: given}
        ).items()
    }


def _without(folders: Iterable[Path], text: str) -> str:
    """Drop folders from a text; names of files stay."""
    for folder in sorted({str(form) for path in folders for form in (path, path.resolve())}, key=len, reverse=True):
        text = text.replace(f"{folder}/", "").replace(folder, "its folder")
    return text
