"""The straight line from arrays to arrays: reproducible to the bit, independent of company, kept within the mask."""

import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch

from brats_inpainting import concurrent, config, plan
from brats_inpainting.config import PRESETS, DiffusionConfig, UNetConfig
from brats_inpainting.data import validation, volume
from brats_inpainting.data.lesion import MaskReading
from brats_inpainting.data.nifti import LPS
from brats_inpainting.data.windows import Stack
from brats_inpainting.diffusion import checkpoint
from brats_inpainting.diffusion.unet import UNet
from brats_inpainting.errors import CaseError, CheckpointError, ConfigError, InpaintingError
from brats_inpainting.inpainter import Inpainter
from brats_inpainting.progress import ProgressBar

from .conftest import (
    TINY,
    TINY_3D,
    RandomOutput,
    brain,
    inpainter,
    lesion,
    scan_of,
    tiny_network,
    weights,
    with_plan,
    write_case,
)

SHAPE = (64, 64, 12)


def filled(machine, scans):
    return {stack.scan.id: machine.finish(stack).volume_XYZ for stack in machine.fill(scans, seed=5)}


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpmpp_2m", "heun"])
@pytest.mark.parametrize("noise", ["independent", "slerp"])
def test_a_slice_is_the_same_to_the_bit_in_any_company_and_order(sampler, noise):
    machine = inpainter(sampler=sampler, noise=noise, samples=2)
    scans = [scan_of(0, "a"), scan_of(1, "b", radius=0.2), scan_of(2, "c", centre=(0.4, 0.5, 0.4))]
    alone = {name: image for scan in scans for name, image in filled(machine, [scan]).items()}
    for order in ([0, 1, 2], [2, 1, 0], [1, 0]):
        for name, image in filled(machine, [scans[i] for i in order]).items():
            assert image.tobytes() == alone[name].tobytes()


@pytest.mark.parametrize("number", [2, 3])
@pytest.mark.parametrize("size", [3, 5, 6])
def test_a_slice_is_the_same_to_the_bit_in_every_place_of_a_batch_that_cases_share(size, number, threads):
    threads(number)
    machine = inpainter(batch_size=size, steps=1)
    scans = [scan_of(0, "a"), scan_of(1, "b", radius=0.2), scan_of(2, "c", centre=(0.4, 0.5, 0.4))]
    together, turned = (filled(machine, some) for some in (scans, scans[::-1]))
    for scan in scans:
        alone = filled(machine, [scan])[scan.id].tobytes()
        assert together[scan.id].tobytes() == turned[scan.id].tobytes() == alone


def test_batch_sizes_agree_within_a_thousandth_of_the_range():
    scans = [scan_of(0, "a"), scan_of(1, "b", radius=0.2)]
    results = [filled(inpainter(batch_size=size, sampler="dpmpp_2m", steps=4), scans) for size in (1, 3, 8)]
    for name, reference in results[0].items():
        for other in results[1:]:
            assert abs(other[name] - reference).max() < 1e-3 * np.ptp(reference)


@pytest.fixture
def threads():
    """What sets the number of torch's threads for a while."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("number", [2, 5])
def test_batches_side_by_side_give_the_same_bits_as_one_by_one(number, threads):
    scans = [scan_of(0, "a"), scan_of(1, "b", radius=0.2), scan_of(2, "c", centre=(0.4, 0.5, 0.4))]
    machine = inpainter(batch_size=2, samples=2)
    threads(1)
    expected = filled(machine, scans)
    threads(number)
    for name, image in filled(with_plan(machine, concurrent=number), scans).items():
        assert image.tobytes() == expected[name].tobytes()


def test_each_of_the_batches_side_by_side_has_its_share_of_the_threads(threads, monkeypatch):
    class Telling(torch.nn.Module):
        def forward(self, x_NCV, _t_N):
            shares.add(torch.get_num_threads())
            names.add(threading.current_thread().name)
            time.sleep(0.05)
            return x_NCV[:, :1]

    shares, names = set(), set()
    monkeypatch.setattr(concurrent, "MOST_CONCURRENT", 2)
    threads(4)
    assert set(filled(with_plan(inpainter(Telling(), batch_size=1), concurrent=4), [scan_of(0, "a")])) == {"a"}
    assert (shares, len(names)) == ({2}, 2)
    with ThreadPoolExecutor(1) as later:
        assert torch.get_num_threads() == later.submit(torch.get_num_threads).result() == 4


def slow(passes):
    """Return an inpainter of two batches side by side whose network notes its passes, 50 of 10 ms for each slice."""

    class Slow(torch.nn.Module):
        def forward(self, x_NCV, _t_N):
            time.sleep(0.01)
            passes.append(len(x_NCV))
            return x_NCV[:, :1]

    return with_plan(inpainter(Slow(), batch_size=1, sampler="ddim", steps=50), concurrent=2)


def test_batches_side_by_side_end_with_the_pass_that_they_are_at_when_nobody_wants_more(threads):
    threads(2)
    passes = []
    machine = slow(passes)
    going = machine.fill([scan_of(0, "a", radius=0.1), scan_of(1, "b")])
    next(going)
    before = len(passes)
    going.close()
    ended = len(passes)
    time.sleep(0.1)
    assert ended == len(passes) < before + 50


def test_batches_side_by_side_end_with_the_pass_that_they_are_at_when_the_next_scan_fails(threads):
    def scans():
        yield scan_of(0, "a")
        raise ValueError("no more")

    threads(2)
    passes = []
    machine = slow(passes)
    with pytest.raises(ValueError, match="no more"):
        list(machine.fill(scans()))
    assert 50 <= len(passes) < 150  # of 4 slices, 50 passes each


def test_what_fails_in_one_of_the_batches_side_by_side_is_raised(threads):
    class Failing(torch.nn.Module):
        def forward(self, x_NCV, _t_N):
            passes.append(len(x_NCV))
            if len(passes) == 3:
                raise ValueError("lost")
            return x_NCV[:, :1]

    threads(2)
    passes = []
    machine = with_plan(inpainter(Failing(), batch_size=1), concurrent=2)
    with pytest.raises(ValueError, match="lost"):
        list(machine.fill([scan_of(0, "a")]))


def test_a_shorter_precision_changes_little_and_nothing_outside_the_mask():
    image, mask = brain(SHAPE), lesion(SHAPE)
    exact, short = (with_plan(inpainter(), precision=name).inpaint(image, mask).image for name in ("fp32", "bf16"))
    assert (exact[mask] != short[mask]).mean() > 0.9
    assert abs(exact - short).max() < 0.02 * np.ptp(image)  # bfloat16 has 8 bits, and errors add up over two steps
    assert (exact[~mask] == short[~mask]).all()


def test_the_seed_decides_and_nothing_else():
    machine, image, mask = inpainter(), brain(SHAPE), lesion(SHAPE)
    a, b, c = (machine.inpaint(image, mask, seed=seed).image for seed in (1, 1, 2))
    assert a.tobytes() == b.tobytes()
    assert (a[mask] != c[mask]).mean() > 0.9
    assert (a[~mask] == c[~mask]).all()


def test_arrays_give_arrays_and_images_give_images():
    machine, image, mask = inpainter(samples=2), brain(SHAPE), lesion(SHAPE)
    arrays = machine.inpaint(image, mask)
    images = machine.inpaint(nib.Nifti1Image(image, LPS), nib.Nifti1Image(mask.astype(np.uint8), LPS))
    assert (np.asarray(images.image.dataobj) == arrays.image).all()
    assert (np.asarray(images.std.dataobj) == arrays.std).all()
    assert set(arrays.timings) == {"prepare", "fill", "finish"}


def test_the_uncertainty_is_zero_outside_the_mask_and_absent_for_one_sample():
    image, mask = brain(SHAPE), lesion(SHAPE)
    std = inpainter(samples=3).inpaint(image, mask).std
    assert (std[~mask] == 0).all()
    assert (std[mask] > 0).mean() > 0.9
    assert inpainter().inpaint(image, mask).std is None


def test_the_papers_preset_replaces_whole_slices_and_rescales_the_volume():
    image, mask = brain(SHAPE), lesion(SHAPE)
    machine = inpainter(replace="slices", sampler="ddpm")
    result = machine.inpaint(np.where(mask, 0, image), mask).image
    low, high = np.percentile(np.where(mask, 0, image), (0.5, 99.5))
    # min-max onto the percentiles, in float32
    np.testing.assert_allclose([result.min(), result.max()], [low, high], rtol=1e-6, atol=1e-3)
    touched = mask.any(axis=(0, 1)) & (image > 0) & ~mask
    assert (result[touched] != image[touched]).mean() > 0.9


def test_smoothing_touches_the_inside_of_the_mask_only():
    image, mask = brain(SHAPE), lesion(SHAPE)
    sharp, smooth = (inpainter(smoothing=sigma).inpaint(image, mask).image for sigma in (0, 1.075))
    assert (sharp[~mask] == smooth[~mask]).all()
    assert np.std(smooth[mask]) < np.std(sharp[mask])


def test_smoothing_along_z_leaves_the_planes_sharp():
    plane_HW = np.random.default_rng(0).random((8, 8), np.float32)
    alike_SHW = np.stack([plane_HW] * 6)
    np.testing.assert_allclose(volume.smooth(alike_SHW, (0, 0, 0.5)), alike_SHW, atol=1e-6)
    assert np.abs(volume.smooth(alike_SHW.T, (0, 0, 0.5)) - alike_SHW.T).max() > 0.01


@pytest.mark.parametrize("axis", range(3))
def test_a_sigma_is_that_of_its_axis_of_the_scan(axis):
    scan = scan_of(0, "a")
    dot_SHW = np.zeros_like(scan.image_SHW)
    dot_SHW[tuple(np.argwhere(scan.mask_SHW).mean(axis=0).astype(int))] = 1
    blurred_SHW = volume.smooth(dot_SHW, [float(other == axis) for other in range(3)])
    touched = np.argwhere(scan.inside(blurred_SHW) != scan.inside(0 * dot_SHW))
    assert [*(np.ptp(touched, axis=0) > 0)] == [other == axis for other in range(3)]


def test_an_empty_mask_among_others_is_filled_like_any_other():
    scans = [scan_of(0, "a"), scan_of(1, "empty", radius=0), scan_of(2, "c")]
    done = filled(inpainter(), scans)
    assert set(done) == {"a", "empty", "c"}
    assert (done["empty"] == scans[1].voided_XYZ).all()


def test_scans_with_an_empty_mask_are_yielded_while_others_are_read():
    opened = []

    def scans():
        for number in range(20):
            opened.append(number)
            yield scan_of(number, str(number), radius=0)

    filling = inpainter().fill(scans())
    assert next(filling).scan.id == "0"
    assert len(opened) <= 2
    assert len(list(filling)) == 19


@pytest.mark.parametrize("how", [{}, {"replace": "slices"}])
def test_an_empty_mask_gives_back_the_scan(how):
    image = brain(SHAPE)
    result = inpainter(RandomOutput(), **how).inpaint(image, np.zeros(SHAPE, bool))
    assert (result.image == image).all()


def test_dilation_fills_more():
    image, mask = brain(SHAPE), lesion(SHAPE)
    grown = volume.grow(mask, 2, (1, 1, 1))
    result = inpainter(RandomOutput(), dilate=2).inpaint(image, mask).image
    assert (result[~grown] == image[~grown]).all()
    added = grown & ~mask & (image > 0)
    assert (result[added] != image[added]).mean() > 0.9


def test_the_batch_is_halved_when_memory_runs_out():
    class Hungry(torch.nn.Module):
        def forward(self, x_NCV, _t_N):
            if len(x_NCV) > 2:
                raise torch.OutOfMemoryError("too much")
            return x_NCV[:, 2:3]  # the noise, which no two slices share

    machine, scans = inpainter(Hungry(), batch_size=8), [scan_of(0, "a"), scan_of(1, "b")]
    halved = filled(machine, scans)
    assert machine.plan.batch_size == 2
    for name, image in filled(inpainter(Hungry(), batch_size=1), scans).items():
        assert (halved[name] == image).all()


def test_memory_for_not_even_one_slice_is_said_clearly():
    class Hungry(torch.nn.Module):
        def forward(self, _x_NCV, _t_N):
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory")

    with pytest.raises(InpaintingError, match="single window"):
        inpainter(Hungry()).inpaint(brain(SHAPE), lesion(SHAPE))


def test_nan_from_the_network_is_an_error():
    class Broken(torch.nn.Module):
        def forward(self, x_NCV, _t_N):
            return x_NCV[:, :1] * torch.nan

    with pytest.raises(CaseError, match="NaN"):
        inpainter(Broken()).inpaint(brain(SHAPE), lesion(SHAPE))


def test_every_masked_slice_is_sampled_with_as_many_passes_as_the_preset_says():
    for sampler, steps in (("ddim", 3), ("heun", 3), ("ddpm", 4)):
        calls = []

        class Counting(torch.nn.Module):
            def forward(self, x_NCV, _t_N, calls=calls):
                calls.append(len(x_NCV))
                return x_NCV[:, :1]

        machine = inpainter(Counting(), batch_size=1, sampler=sampler, steps=steps)
        (stack,) = machine.fill([scan_of(0, "a")])
        assert isinstance(stack, Stack)
        assert len(calls) == machine.sampling.passes * lesion(SHAPE).any(axis=(0, 1)).sum()


def test_loading_says_what_is_wrong(tiny_weights, tmp_path):
    with pytest.raises(ConfigError, match="no preset"):
        Inpainter.load(tiny_weights, preset="fastest")
    with pytest.raises(ConfigError, match="no device"):
        Inpainter.load(tiny_weights, device="abacus")
    with pytest.raises(ConfigError, match="1001 steps"):
        Inpainter.load(tiny_weights, steps=1001)
    with pytest.raises(CheckpointError, match="no such weights"):
        Inpainter.load(tmp_path / "none.pt")


@pytest.mark.parametrize(
    ("prediction", "said", "steps"),
    [
        ("eps", {}, 25),
        ("eps", {"preset": "realistic"}, 25),
        ("eps", {"preset": "paper"}, 1000),
        ("eps", {"steps": 24}, 24),
        ("x0", {}, 2),
    ],
)
def test_weights_that_predict_noise_take_25_steps_at_least_or_warn(prediction, said, steps, tmp_path, caplog):
    path, diffusion = tmp_path / "tiny.safetensors", DiffusionConfig(prediction=prediction, window=32)
    checkpoint.save(path, tiny_network().state_dict(), unet=TINY, diffusion=diffusion, ema=True, notes={})
    assert Inpainter.load(path, device="cpu", **said).sampling.steps == steps
    few = "tiny.safetensors predicts noise, for which 24 steps are few: use 25 or more"
    assert (few in caplog.text) == (said == {"steps": 24})


def test_what_is_usual_on_the_device_is_taken_if_nothing_is_said(monkeypatch):
    monkeypatch.setattr(plan, "defaults", lambda *_: (3, "bf16"))
    loads = [Inpainter.load(**said) for said in ({}, {"at_most": 2}, {"batch_size": 5, "precision": "fp32"})]
    assert [(made.plan.batch_size, made.plan.precision) for made in loads] == [(3, "bf16"), (2, "bf16"), (5, "fp32")]


@pytest.mark.parametrize(("width", "number", "concurrent"), [(32, 3, 3), (32, 32, 16), (32, 40, 13), (96, 3, 1)])
def test_a_narrow_network_is_given_a_batch_for_every_thread_and_16_at_most(
    width, number, concurrent, monkeypatch, tmp_path
):
    unet = UNetConfig(width=width, multipliers=(1,), blocks=1, attention_at=())
    state = UNet(unet).state_dict()
    checkpoint.save(tmp_path / "w.safetensors", state, unet=unet, diffusion=DiffusionConfig(), ema=True, notes={})
    monkeypatch.setattr(torch, "get_num_threads", lambda: number)
    assert Inpainter.load(tmp_path / "w.safetensors", device="cpu", batch_size=1).plan.concurrent == concurrent


def test_overrides_replace_what_the_preset_says(tiny_weights):
    machine = Inpainter.load(tiny_weights, preset="paper", steps=3, device="cpu")
    assert machine.sampling == PRESETS["paper"][2].model_copy(update={"steps": 3})


def test_weights_survive_the_journey_to_disk(tiny_weights):
    machine = Inpainter.load(tiny_weights, device="cpu")
    stored = dict(machine.weights.network.state_dict())
    for name, tensor in tiny_network().state_dict().items():
        assert torch.equal(stored[name], tensor.half().float())  # half precision on disk
    assert machine.weights.diffusion.window == 32


@pytest.mark.parametrize("given", [np.ones((4, 4)), np.ones((4, 4, 4, 2)), np.ones((4, 4, 4), complex), ["T1.nii.gz"]])
def test_what_is_no_volume_is_a_case_error(given):
    with pytest.raises(CaseError, match="image"):
        inpainter().inpaint(given, np.ones((4, 4, 4)))


def test_paths_are_read(tmp_path):
    case = write_case(tmp_path, "a")
    image, mask = (case / f"a-{kind}.nii.gz" for kind in ("t1n-voided", "mask"))
    by_path = inpainter().inpaint(image, str(mask)).image
    by_image = inpainter().inpaint(nib.load(image), nib.load(mask)).image
    assert (np.asarray(by_path.dataobj) == np.asarray(by_image.dataobj)).all()


def test_a_trailing_axis_of_an_array_is_put_back():
    result = inpainter().inpaint(brain(SHAPE)[..., None], lesion(SHAPE))
    assert result.image.shape == (*SHAPE, 1)


def test_the_papers_preset_refuses_what_has_no_range():
    class Flat(torch.nn.Module):
        def forward(self, x_NCV, _t_N):
            return torch.full_like(x_NCV[:, :1], -5)

    speck = np.where(lesion(SHAPE, (0.5, 0.5, 0.5), 0.05), 500, 0)
    most = MaskReading(threshold=0.5)  # the mask is larger than the speck
    with pytest.raises(CaseError, match="percentiles"):
        inpainter(replace="slices").inpaint(speck, lesion(SHAPE, (0.4, 0.5, 0.5), 0.1), reading=most)
    slab = brain(SHAPE)
    slab[..., [0, -1]] = 0
    with pytest.raises(CaseError, match="percentiles"):
        inpainter(Flat(), replace="slices", smoothing=0, window=224).inpaint(slab, np.tile(slab[..., 5:6] > 900, 12))


def test_weights_of_another_shape_of_work_are_refused(tmp_path):
    config = UNetConfig(width=32, multipliers=(1,), blocks=1, attention_at=(), in_channels=4)
    state = UNet(config).state_dict()
    checkpoint.save(tmp_path / "w.safetensors", state, unet=config, diffusion=DiffusionConfig(), ema=True, notes={})
    with pytest.raises(CheckpointError, match="4 channels"):
        Inpainter.load(tmp_path / "w.safetensors")


@pytest.mark.parametrize("sampler", ["ddim", "heun"])
def test_progress_counts_every_network_pass(sampler, threads):
    threads(2)
    machine, progress = with_plan(inpainter(sampler=sampler, steps=3), concurrent=2), ProgressBar(1, quiet=True)
    assert list(machine.fill([scan_of(0, "a")], progress=progress))
    assert progress.known == progress.done == machine.sampling.passes * lesion(SHAPE).any(axis=(0, 1)).sum()


def volume_inpainter(**changes):
    """An inpainter around a tiny three-dimensional network."""
    torch.manual_seed(0)
    network = UNet(TINY_3D).eval().requires_grad_(requires_grad=False)
    for parameter in network.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    machine = inpainter(network, batch_size=2, noise="independent", smoothing=0)
    return with_plan(machine, **changes)


def test_a_box_is_the_same_to_the_bit_in_any_company_and_order():
    machine = volume_inpainter()
    scans = [scan_of(0, "a"), scan_of(1, "b", radius=0.2), scan_of(2, "c", centre=(0.4, 0.5, 0.4))]
    alone = {name: image for scan in scans for name, image in filled(machine, [scan]).items()}
    for order in ([0, 1, 2], [2, 0]):
        for name, image in filled(machine, [scans[i] for i in order]).items():
            assert image.tobytes() == alone[name].tobytes()


def test_boxes_fill_the_mask_and_nothing_else():
    image, mask = brain(SHAPE), lesion(SHAPE, (0.3, 0.5, 0.5), 0.08) | lesion(SHAPE, (0.7, 0.5, 0.5), 0.08)
    result = volume_inpainter().inpaint(image, mask).image
    assert (result[~mask] == image[~mask]).all()
    assert (result[mask] != image[mask]).mean() > 0.99  # a value may come out as it was
    assert not (result[mask] == 0).all()


def test_a_box_in_parts_is_much_like_one_in_one_piece():
    shape = (128, 64, 12)
    image, mask = brain(shape), np.zeros(shape, bool)
    mask[24:104, 24:40, 3:9] = True
    machines = (volume_inpainter(most_voxels=most) for most in (None, 80 * 64 * 32))
    whole, parts = (replace(machine, weights=smooth_weights()) for machine in machines)
    images = [nib.Nifti1Image(values.astype(np.float32), LPS) for values in (image, mask)]
    scan = volume.prepare(validation.examine("a", *images, names=("image", "mask")))
    assert len(whole.stack(scan).windows) == 1
    assert len(parts.stack(scan).windows) > 1
    one, several = (machine.inpaint(image, mask).image[mask] for machine in (whole, parts))
    assert np.abs(one - several).max() < 0.02 * np.ptp(image)  # the norms see other surroundings


def smooth_weights():
    """Weights of a network that returns the local mean of what it sees."""

    class Mean(torch.nn.Module):
        config = TINY_3D

        def forward(self, x_NCV, _t_N):
            return torch.nn.functional.avg_pool3d(x_NCV[:, :1], 5, stride=1, padding=2)

    return weights(Mean(), prediction="x0", window=32)


def test_the_preset_decides_the_bundled_weights_and_refuses_those_of_other_dimensions():
    assert config.weights_path(None, "fast") == config.BUNDLED["volume-2"]
    assert config.weights_path(None, "paper") == config.BUNDLED["small-2"]
    assert config.weights_path("small-2", "fast") == config.BUNDLED["small-2"]
    with pytest.raises(ConfigError, match="slice by slice"):
        Inpainter.load("volume-2", preset="paper", device="cpu")


def test_what_the_default_loads():
    machine = Inpainter.load(device="cpu")
    assert machine.weights.path == config.BUNDLED_WEIGHTS
    assert machine.sampling == PRESETS["fast"][3]
    assert (machine.plan.batch_size, machine.plan.concurrent) == (1, 1)


def test_an_inpainter_can_be_pickled():
    ours = inpainter()
    copy = pickle.loads(pickle.dumps(ours))
    np.testing.assert_array_equal(*(each.inpaint(brain(SHAPE), lesion(SHAPE)).image for each in (ours, copy)))
