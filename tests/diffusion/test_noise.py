"""A slice's noise depends on the seed, its index, its sample and the step, and on nothing else."""

import pytest
import torch

from brats_inpainting.diffusion import noise

KEY = {"seed": 3, "z": 20, "sample": 1, "step": 0, "mode": "independent"}
SHAPE = (96, 96)


@pytest.mark.parametrize("mode", ["independent", "shared", "slerp"])
def test_the_same_key_gives_the_same_standard_normal_draw(mode):
    a, b = (noise.draw(SHAPE, **KEY | {"mode": mode}) for _ in range(2))
    assert torch.equal(a, b)
    assert abs(a.mean()) < 0.05  # five standard errors of 9216 draws
    assert abs(a.std() - 1) < 0.04  # likewise


@pytest.mark.parametrize("mode", ["independent", "shared", "slerp"])
@pytest.mark.parametrize("change", [{"seed": 4}, {"sample": 0}, {"step": 1}, {"z": 21}])
def test_any_other_key_gives_another_draw(mode, change):
    if "z" in change:  # what z does in the other modes is tested below
        mode = "independent"
    a, b = (noise.draw(SHAPE, **KEY | {"mode": mode} | new) for new in ({}, change))
    assert abs(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]) < 0.05


def test_shared_noise_is_one_for_all_slices():
    shared = KEY | {"mode": "shared"}
    assert torch.equal(noise.draw(SHAPE, **shared), noise.draw(SHAPE, **shared | {"z": 99}))


def test_slerp_walks_evenly_from_anchor_to_anchor_without_losing_variance():
    draws = [noise.draw(SHAPE, **KEY | {"mode": "slerp", "z": z}) for z in range(16, 25)]
    cosines = [float(torch.cosine_similarity(draws[0].flatten(), d.flatten(), dim=0)) for d in draws]
    angles = torch.arccos(torch.tensor(cosines).clamp(-1, 1))
    steps = angles.diff()
    assert torch.allclose(steps, steps.mean().expand(8), atol=0.01)  # the anchors' norms differ by about 1 %
    assert all(abs(d.std() - 1) < 0.04 for d in draws)
    assert torch.allclose(draws[0], noise.draw(SHAPE, **KEY | {"z": 16}), atol=1e-6)  # one multiplication apart
