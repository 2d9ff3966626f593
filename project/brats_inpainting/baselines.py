"""Fills without a network: what any model must beat."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np

from brats_inpainting.data import cases, slices, volume
from brats_inpainting.data.volume import Scan
from brats_inpainting.errors import CaseError, ConfigError

log = logging.getLogger(__name__)


def mean(scan: Scan) -> np.ndarray:
    """Fill with the mean of the scan's brain outside the mask: H × W × S in [0, 1]."""
    brain = scan.image_HWS[(scan.image_HWS > 0) & ~scan.mask_HWS]
    return np.where(scan.mask_HWS, brain.mean(), scan.image_HWS)


def biharmonic(scan: Scan) -> np.ndarray:
    """Fill every axial slice with the biharmonic surface through its surroundings (scikit-image): H × W × S."""
    try:
        from skimage.restoration import inpaint_biharmonic
    except ImportError as error:
        raise ConfigError("biharmonic needs scikit-image\n  pip install scikit-image") from error
    filled_HWS = scan.image_HWS.copy()
    for z in slices.masked(scan.mask_HWS):
        image_HW, mask_HW = (np.ascontiguousarray(a[:, :, z]) for a in (scan.image_HWS, scan.mask_HWS))
        filled_HWS[:, :, z] = inpaint_biharmonic(image_HW, mask_HW)
    return filled_HWS


METHODS: dict[str, Callable[[Scan], np.ndarray]] = {"mean": mean, "biharmonic": biharmonic}


def fill_folder(method: str, data_path: Path, output_path: Path) -> dict[str, str]:
    """Fill every case of a folder; return the cases that failed, and why."""
    volume.make_writable(output_path)
    failed = {}
    for case in cases.find(data_path):
        try:
            scan = volume.prepare(cases.load(case))
            filled_XYZ = scan.inside(METHODS[method](scan))
            volume.save(volume.image_like(scan.loaded, filled_XYZ), output_path / cases.output_name(case.id))
        except CaseError as error:
            failed[case.id] = str(error)
        else:
            log.info("%s: filled", case.id)
    return failed
