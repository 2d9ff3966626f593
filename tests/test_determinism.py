"""The same numbers wherever and however a case is filled: golden values of each preset, and of several processes."""

import numpy as np
import pytest
import torch

from brats_inpainting.config import PRESETS
from brats_inpainting.inpainter import Inpainter
from brats_inpainting.plan import Plan

from .conftest import TINY, TINY_3D, brain, lesion, weights, write_case
from .golden import network
from .reliability import kills

SHAPE = (32, 32, 6)

# by preset and the network's dimensions: mean and standard deviation of the filled scan, and every seventh voxel of the
# mask; the paper's chain in 60 steps
GOLDEN = {
    ("fast", 2): (
        (136.53880, 278.69733),
        (321.266, 240.284, 421.866, 782.139, 693.512, 324.901, 864.037, 332.600, 790.888, 892.101, 644.322),
    ),
    ("uncertainty", 2): (
        (136.49513, 278.34393),
        (320.392, 248.698, 348.884, 613.210, 672.890, 406.022, 853.634, 330.177, 770.635, 885.216, 667.275),
    ),
    ("realistic", 2): (
        (137.44774, 281.24442),
        (100.632, 320.039, 913.318, 401.887, 949.919, 251.398, 975.795, 548.129, 972.591, 991.245, 724.810),
    ),
    ("paper", 2): (
        (299.31232, 206.76955),
        (615.364, 524.457, 655.130, 695.451, 796.401, 643.762, 904.822, 594.795, 972.806, 737.457, 739.027),
    ),
    ("fast", 3): (
        (136.63217, 278.80002),
        (386.478, 373.919, 355.355, 308.778, 916.126, 607.832, 333.235, 435.339, 810.234, 148.443, 680.391),
    ),
    ("realistic", 3): (
        (136.46898, 278.58606),
        (675.185, 520.705, 188.970, 297.324, 460.536, 724.290, 113.088, 331.223, 466.877, 469.407, 321.131),
    ),
    ("uncertainty", 3): (
        (136.41438, 278.47705),
        (701.318, 522.412, 188.206, 290.758, 452.033, 786.472, 249.637, 346.801, 532.098, 463.203, 344.675),
    ),
}


@pytest.mark.parametrize(("preset", "dims"), GOLDEN)
@pytest.mark.parametrize("batch_size", [1, 4])
def test_every_preset_gives_its_golden_values(preset, dims, batch_size):
    assert {*GOLDEN} == {(name, dims) for name, ways in PRESETS.items() for dims in ways}
    how = PRESETS[preset][dims]
    how = how.model_copy(update={"steps": min(60, how.steps)})
    loaded = weights(network(TINY if dims == 2 else TINY_3D), prediction="x0", window=32, image_range=(-1, 1))
    image, mask = brain(SHAPE), lesion(SHAPE)
    machine = Inpainter(loaded, how, Plan(torch.device("cpu"), batch_size=batch_size))
    result = machine.inpaint(np.where(mask, 0, image), mask, seed=3).image
    moments, voxels = GOLDEN[preset, dims]
    # 1e-3 of the range, 1000, is promised between batch sizes; between one thread and two 1e-6 of it was seen
    np.testing.assert_allclose([result.mean(), result.std()], moments, rtol=0, atol=0.1)
    np.testing.assert_allclose(result[mask][::7], voxels, rtol=0, atol=1)


@pytest.mark.slow
def test_two_processes_that_share_the_cases_write_the_bytes_of_one(tmp_path, tiny_weights):
    (tmp_path / "tiny.safetensors").symlink_to(tiny_weights)
    for number in range(4):
        write_case(tmp_path / "data", f"case-{number}", shape=(48, 48, 8), seed=number)
        half = tmp_path / f"half-{number % 2}" / "data"
        half.mkdir(parents=True, exist_ok=True)
        (half / f"case-{number}").symlink_to(tmp_path / "data" / f"case-{number}")
        if number < 2:
            (half.parent / "tiny.safetensors").symlink_to(tiny_weights)
    runs = [kills.start(root, root / "out") for root in (tmp_path, tmp_path / "half-0", tmp_path / "half-1")]
    for process in runs:
        _, told = process.communicate(timeout=120)
        assert process.returncode == 0, told
    shared = kills.contents(tmp_path / "half-0" / "out") | kills.contents(tmp_path / "half-1" / "out")
    assert len(shared) == 4
    assert shared == kills.contents(tmp_path / "out")
