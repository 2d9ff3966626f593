"""The HTML report: one self-contained file, all cases, the worst first.

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
from brats_inpainting.evaluate import CaseVolumes, ScoreRow
from brats_inpainting.files import atomic_write
from brats_inpainting.host import muted
from brats_inpainting.pictures import PLANES
from brats_inpainting.tables import Grid, known_metrics

PAGE = "report.html"
MARGIN = 5  # voxels: width of the region around the mask
AROUND, REST = "around the mask", "rest of the tissue"
STYLES = {"truth": "truth", AROUND: "rest", REST: "rest"}  # CSS classes of lines in charts; models have colours
BINS = np.linspace(0, 1.2, 49)  # of the histogram, in shares of white
UNCERTAINTY, DIFFERENCE = "inferno", "berlin"  # colormaps: black is 0; blue is darker, red brighter
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


class Picture(NamedTuple):
    """An image of a plane: the view's name, the image as a data URI, and its alternative text."""

    view: str
    image: str
    alt: str


class PlaneView(NamedTuple):
    """A plane of a case: pictures, their width over height in mm, the mask's outline, and its ends in per cent."""

    caption: str
    left: str
    ratio: float
    pictures: list[Picture]
    outline: str
    low: float
    high: float


class Curve(NamedTuple):
    """A line of a chart: name, CSS class, and points in per cent of the chart."""

    name: str
    style: str
    points: str


class Chart(NamedTuple):
    """A line chart: title, label of the x axis, ends of both axes, and lines."""

    title: str
    xlabel: str
    first: str
    last: str
    lowest: str
    highest: str
    curves: list[Curve]


@dataclass
class Section:
    """The section of one case."""

    id: str
    rows: list[ScoreRow]
    planes: list[PlaneView] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)
    viewer: str = ""
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def warnings(self) -> list[str]:
        """What infer warned of."""
        return list(self.facts.get("warnings", ()))


class Report:
    """An HTML report: call ``add`` for each case, then ``write``."""

    def __init__(self, folder: Path, *, images: bool = True, viewer: bool = False) -> None:
        """Prepare a report in ``folder``.

        Args:
            folder: receives report.html; the settings of infer's ``run.json`` there are included.
            images: include images of the brains.
            viewer: embed an interactive viewer (nilearn) of each case.

        Raises:
            ConfigError: when a needed package is not installed.
        """
        if missing := [name for name in ("jinja2", "matplotlib", "PIL") if not importlib.util.find_spec(name)]:
            raise container.missing(f"the report needs {' and '.join(missing)}", "report")
        if viewer and not importlib.util.find_spec("nilearn"):
            raise container.missing("the viewer needs nilearn", "example")
        self.folder, self.images, self.viewer = folder, images, viewer and images
        self.sections: dict[str, Section] = {}
        self.viewer_lock = Lock()

    def add(self, volumes: CaseVolumes, rows: list[ScoreRow]) -> None:
        """Add the section of a case; thread-safe."""
        section = Section(volumes.id, rows, charts=_charts(volumes), facts=volumes.facts)
        if self.images:
            section.planes = [_plane(volumes, name) for name in reversed(PLANES)]
        if self.viewer:
            with self.viewer_lock:
                section.viewer = _viewer(volumes)
        self.sections[volumes.id] = section

    def write(self, grids: Sequence[Grid], failed: dict[str, str], hidden: Iterable[Path] = ()) -> Path:
        """Write report.html and return its path.

        Args:
            grids: the tables of all cases.
            failed: id → reason, of cases that could not be filled or read.
            hidden: folders whose paths are removed from the reasons.
        """
        from jinja2 import Environment, PackageLoader

        known = next((section.facts for section in self.sections.values() if section.facts), {})
        run = record.read(self.folder) if known else {}
        rows = [row for section in self.sections.values() for row in section.rows]
        shown = known_metrics(rows)
        template = Environment(loader=PackageLoader("brats_inpainting"), autoescape=True).get_template(PAGE)
        text = template.render(
            sections=sorted(self.sections.values(), key=_worst_first),
            order="lowest SSIM first" if "ssim" in shown else "most warnings first",
            warned=any(section.warnings for section in self.sections.values()),
            metrics=shown,
            several=len({row.model for row in rows}) > 1,
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


def _worst_first(section: Section) -> tuple[float, int, str]:
    """Sort key: the first model's SSIM, ascending; without ground truth, the number of warnings, descending."""
    ssim = section.rows[0].ssim
    return (ssim, 0, section.id) if np.isfinite(ssim) else (1.0, -len(section.warnings), section.id)


def _plane(volumes: CaseVolumes, name: str) -> PlaneView:
    plane, level, given = volumes.plane(name), volumes.white, volumes.input_name
    known = {given: volumes.voided_XYZ, **volumes.filled}
    greys = {view: plane.cut(volume_XYZ) / level for view, volume_XYZ in known.items()}
    images = {view: np.repeat(grey_RC[..., None].clip(0, 1), 3, axis=2) for view, grey_RC in greys.items()}
    scored_RC, mask_RC = plane.cut(volumes.scored_XYZ), plane.cut(volumes.mask_XYZ)
    if volumes.truth_XYZ is not None:
        for model in volumes.fills:
            off_RC = np.clip(greys[model] - greys["truth"], -0.5, 0.5) + 0.5
            view = f"{model} − truth" if len(volumes.fills) > 1 else "difference from the truth"
            images[view] = np.where(scored_RC[..., None], _coloured(off_RC, DIFFERENCE), images["truth"] * 0.5)
    if volumes.std_XYZ is not None:
        std_RC = np.clip(plane.cut(volumes.std_XYZ) / level / 0.1, 0, 1)
        images["uncertainty"] = np.where(mask_RC[..., None], _coloured(std_RC, UNCERTAINTY), images[given] * 0.5)
    slices = np.flatnonzero(volumes.scored_XYZ.any(axis=tuple({0, 1, 2} - {PLANES[name]})))
    where = f"{name}, slice {plane.index}" + (f" (mask: {slices[0]} to {slices[-1]})" if slices.size else "")
    pictures = [Picture(view, _data(image), f"{volumes.id}: {view}, {where}") for view, image in images.items()]
    edge_RC = mask_RC & ~ndimage.binary_erosion(mask_RC)
    outline = np.dstack([np.broadcast_to(np.array([1.0, 0.69, 0.0]), (*edge_RC.shape, 3)), edge_RC])
    columns = np.flatnonzero(scored_RC.any(axis=0)) if scored_RC.any() else np.array([0, scored_RC.shape[1]])
    low, high = (100 * column / scored_RC.shape[1] for column in (columns[0] - 3, columns[-1] + 4))
    ratio = scored_RC.shape[1] / (scored_RC.shape[0] * plane.aspect)
    return PlaneView(where, plane.left, ratio, pictures, _data(outline), max(0.0, low), min(100.0, high))


def _coloured(share_RC: np.ndarray, colormap: str) -> np.ndarray:
    """Apply a colormap to values in [0, 1]: R × C × 3 in [0, 1]."""
    from matplotlib import colormaps

    return colormaps[colormap](share_RC)[..., :3]


def _data(image_RCc: np.ndarray) -> str:
    """Encode an image with values in [0, 1] as a lossless WebP data URI."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.rint(image_RCc * 255).astype(np.uint8)).save(buffer, "WEBP", lossless=True, method=4)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _charts(volumes: CaseVolumes) -> list[Chart]:
    """Return charts of the mean intensity along z and of histograms, inside and around the mask."""
    mask_XYZ = volumes.scored_XYZ
    if not mask_XYZ.any():
        return []
    level = volumes.white
    tissue_XYZ = volumes.tissue_XYZ & ~volumes.mask_XYZ
    around_XYZ = tissue_XYZ & _grown(mask_XYZ)
    planes = np.flatnonzero(mask_XYZ.any(axis=(0, 1)))
    profiles = {name: _profile(volume_XYZ, mask_XYZ, planes) / level for name, volume_XYZ in volumes.filled.items()}
    profiles[AROUND] = _profile(volumes.voided_XYZ, around_XYZ, planes) / level
    shares = {name: _shares(volume_XYZ[mask_XYZ] / level) for name, volume_XYZ in volumes.filled.items()}
    shares[REST] = _shares(volumes.voided_XYZ[tissue_XYZ] / level)
    return [
        _chart("Mean intensity, slice by slice", "slice", profiles, (planes[0], planes[-1])),
        _chart("Histogram", "intensity, share of white", shares, (BINS[0], BINS[-1]), top=1.5 * _highest(shares)),
    ]


def _grown(mask_XYZ: np.ndarray) -> np.ndarray:
    """Return the mask dilated within axial slices."""
    box = tuple(
        slice(max(0, s.start - MARGIN), s.stop + MARGIN) for s in ndimage.find_objects(mask_XYZ.astype("u1"))[0]
    )
    cross = ndimage.generate_binary_structure(2, 1)[:, :, None]
    grown_XYZ = np.zeros_like(mask_XYZ)
    grown_XYZ[box] = ndimage.binary_dilation(mask_XYZ[box], cross, iterations=MARGIN)
    return grown_XYZ


def _profile(volume_XYZ: np.ndarray, region_XYZ: np.ndarray, planes: np.ndarray) -> np.ndarray:
    """Return the mean in a region for each axial slice in ``planes``; NaN for slices without the region."""
    count_Z = region_XYZ.sum(axis=(0, 1))[planes]
    sum_Z = np.where(region_XYZ, volume_XYZ, 0).sum(axis=(0, 1), dtype=float)[planes]
    return np.divide(sum_Z, count_Z, out=np.full(len(planes), np.nan), where=count_Z > 0)


def _shares(values: np.ndarray) -> np.ndarray:
    counts = np.histogram(values, BINS)[0]
    return counts / max(1, counts.sum())


def _highest(shares: dict[str, np.ndarray]) -> float:
    """Return the peak of real tissue; that of a constant fill would dominate the scale."""
    return max(float(values.max()) for name, values in shares.items() if name in STYLES)


def _chart(
    title: str, xlabel: str, lines: dict[str, np.ndarray], ends: tuple[float, float], top: float = np.inf
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
    return Chart(title, xlabel, f"{ends[0]:g}", f"{ends[1]:g}", f"{low:.2g}", f"{high:.2g}", curves)


def _viewer(volumes: CaseVolumes) -> str:
    """Return nilearn's viewer of the first fill with the mask, as an HTML document."""
    from nilearn.plotting import view_img

    filled, mask = (
        nib.nifti1.Nifti1Image(np.asarray(v, np.float32), LPS)
        for v in (next(iter(volumes.fills.values())), volumes.scored_XYZ)
    )
    with muted():  # numpy warnings caused by nilearn
        view = view_img(
            mask, bg_img=filled, threshold=0.5, opacity=0.3, resampling_interpolation="nearest", colorbar=False
        )
    return re.sub(r"<link[^>]*>", "", view.get_standalone())  # its icon would be fetched from the network


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """Flatten nested settings, with the group's name as prefix."""
    return {
        name: value
        for group, given in settings.items()
        for name, value in (
            {f"{group} {key}": v for key, v in given.items()} if isinstance(given, dict) else {group: given}
        ).items()
    }


def _without(folders: Iterable[Path], text: str) -> str:
    """Remove folders from a text; file names stay."""
    for folder in sorted({str(form) for path in folders for form in (path, path.resolve())}, key=len, reverse=True):
        text = text.replace(f"{folder}/", "").replace(folder, "its folder")
    return text
