"""The training loop: it learns, ends, resumes bit for bit, shares its work, and stops before it saves nonsense."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import default_collate
from torch.utils.flop_counter import FlopCounterMode

from brats_inpainting import optimiser
from brats_inpainting import train as training
from brats_inpainting.config import BUNDLED, DiffusionConfig, SamplingConfig, TrainConfig, UNetConfig
from brats_inpainting.data import cache, folds
from brats_inpainting.data.augment import augment
from brats_inpainting.data.dataset import Epoch
from brats_inpainting.data.nifti import LPS
from brats_inpainting.diffusion import checkpoint
from brats_inpainting.diffusion.convolution import CONVOLUTION, MEMORY_FORMAT
from brats_inpainting.diffusion.process import Schedule, predict
from brats_inpainting.diffusion.unet import UNet
from brats_inpainting.errors import ConfigError, InpaintingError
from brats_inpainting.inpainter import Inpainter
from brats_inpainting.parameters import read_recipe
from brats_inpainting.state import export_state
from brats_inpainting.train import train

from .conftest import brain, lesion

UNET = UNetConfig(width=32, multipliers=(1, 1), blocks=1, attention_at=(), out_channels=2)
RECIPE = TrainConfig(
    unet=UNET,
    diffusion=DiffusionConfig(prediction="x0", image_range=(-1, 1), window=32),
    held_out=0,
    max_steps=20,
    batch_size=4,
    lr=1e-3,
    ema=(0.9, 0.99),
    report_every=10,
    save_every=10,
    validation=SamplingConfig(steps=1, sampler="ddim"),
)
ROOT = Path(__file__).parents[1]
PARAMETERS = ROOT / "workspace" / "parameters"


@pytest.fixture(scope="session")
def scans(tmp_path_factory):
    """Three small complete cases with healthy masks."""
    folder = tmp_path_factory.mktemp("scans")
    for seed in range(3):
        case = folder / f"BraTS-GLI-{seed:05d}-000"
        case.mkdir()
        healthy = lesion((72, 72, 24), centre=(0.5, 0.4 + 0.05 * seed, 0.5))
        for name, volume in (("t1n", brain((72, 72, 24), seed)), ("mask-healthy", healthy.astype(np.uint8))):
            nib.save(nib.Nifti1Image(volume, LPS), case / f"{case.name}-{name}.nii.gz")
    return folder


@pytest.fixture(scope="session")
def prepared(scans, tmp_path_factory):
    return tmp_path_factory.mktemp("cache"), scans


@pytest.fixture
def run(prepared, tmp_path):
    """Train on the small cases, which are prepared once for all tests."""
    cached, scans = prepared

    def go(name="run", recipe=RECIPE, **options):
        return train(scans, tmp_path / name, recipe, cache_path=cached, **options)

    return go


def with_(recipe=RECIPE, **changes):
    return TrainConfig.model_validate(recipe.model_dump() | changes)


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def state(folder, step=20):
    return torch.load(folder / "state" / f"{step:08d}.pt", weights_only=True)


def assert_equal(a, b):
    """Compare two states bit for bit."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, list):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_equal(x, y)
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    else:
        assert a == b


def test_training_learns_and_its_weights_load(run, tmp_path):
    weights = checkpoint.load(run(recipe=with_(max_steps=60)))
    assert weights.network.config == UNET
    assert weights.diffusion == RECIPE.diffusion
    assert weights.ema
    assert weights.notes["step"] == 60
    errors = [line["mse"] for line in lines(tmp_path / "run")]  # the bound of one window at t = 0 may outweigh all
    assert errors[-1] < 0.5 * errors[0]  # the last ten steps against the first
    assert (tmp_path / "run" / "curves.png").exists()
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [line["step"] for line in lines(tmp_path / "run")]
    assert {"mse_q1", "mse_q4", "slices_per_s", "lr"} <= lines(tmp_path / "run")[0].keys()


KILLED = """
import os, sys, torch, yaml
from pathlib import Path
from brats_inpainting.config import TrainConfig
from brats_inpainting.train import train

def save_half_and_die(content, path, save=torch.save):
    save(content, path)
    if content["step"] == {step}:
        os.truncate(path, os.path.getsize(path) // 2)
        os.kill(os.getpid(), 9)

torch.save = save_half_and_die
torch.set_num_threads(1)
recipe = TrainConfig.model_validate(yaml.safe_load(sys.argv[1]))
train(Path(sys.argv[2]), Path(sys.argv[3]), recipe, cache_path=Path(sys.argv[4]), resume=True)
"""


def test_a_run_that_was_killed_twice_ends_as_if_nothing_had_happened(run, prepared, tmp_path):
    """Killed in the middle of writing the state of step 10, then of step 20: each time the last whole one serves."""
    everything = {"accumulate": 2, "precision": "bf16", "clip": 1.0, "warmup": 4, "decay": 10}
    recipe = with_(**everything, augmentation={"flip": True, "affine": 5, "gamma": 0.2, "bias": 0.1, "noise": 0.02})
    run("straight", recipe)
    recipe = yaml.safe_dump(with_(recipe, save_every=5).model_dump(mode="json"))
    for step in (10, 20):
        words = (recipe, prepared[1], tmp_path / "killed", prepared[0])
        done = subprocess.run([sys.executable, "-c", KILLED.format(step=step), *map(str, words)], check=False)
        assert done.returncode == -signal.SIGKILL
        assert not (tmp_path / "killed" / "state" / f"{step:08d}.pt").exists()
    run("killed", TrainConfig.model_validate(yaml.safe_load(recipe)), resume=True)
    straight, killed = (state(tmp_path / name) for name in ("straight", "killed"))
    for stored in (straight, killed):
        del stored["config"]  # save_every differs, and may
    assert_equal(straight, killed)
    assert [line["step"] for line in lines(tmp_path / "killed")] == [5, 10, 15, 20]


@pytest.fixture(autouse=True)
def one_thread():
    """The order of a sum, and so its last bits, may depend on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    AcceleratorState._reset_state(reset_partial_state=True)  # else the first precision serves for all


TWO = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "brats_inpainting", "train")


@pytest.mark.parametrize("dims", [2, 3])
def test_two_processes_give_the_parameters_of_one(dims, run, prepared, tmp_path):
    boxes = BOXES.model_copy(update={"optimiser": "adamw", "lr": RECIPE.lr})
    recipe = with_(boxes if dims == 3 else RECIPE, max_steps=5, save_every=5, clip=1.0)
    run("one", recipe)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    paths = ("--data-path", prepared[1], "--output-path", tmp_path / "two", "--cache-path", prepared[0])
    command = [sys.executable, *TWO, *map(str, paths), "--parameters-file", str(tmp_path / "recipe.yaml")]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    one, two = (state(tmp_path / name, 5)["network"] for name in ("one", "two"))
    assert_same_but_for_rounding(one, two, share={2: 0.998, 3: 0.995}[dims])
    moved = max((one[name] - start).abs().max() for name, start in fresh(recipe).state_dict().items())
    assert moved > 1e-3  # the tolerance is small against what training did


def assert_same_but_for_rounding(a, b, share=0.998):
    """Compare parameters after five steps of Adam with gradients that were summed in another order.

    Such gradients differ by 1e-7 of their size, and parameters by little more: 99.8 % of them by less than 1e-5, 99.7 %
    of a network of boxes. But Adam divides a gradient by its own size, so where it should be zero (a bias ahead of a
    normalisation that removes it), rounding alone decides the direction, and the parameter may end anywhere within five
    steps of lr = 1e-3.
    """
    difference = torch.cat([(a[name] - b[name]).abs().ravel() for name in a])
    assert (difference < 1e-5).double().mean() > share
    assert difference.max() < 5e-3


def fresh(recipe):
    torch.manual_seed(recipe.seed)
    return UNet(recipe.unet)


def test_accumulation_changes_nothing_but_rounding(run, tmp_path):
    for accumulate in (1, 4):
        run(str(accumulate), with_(max_steps=5, save_every=5, accumulate=accumulate))
    one, four = (state(tmp_path / name, 5)["network"] for name in ("1", "4"))
    assert_same_but_for_rounding(one, four)


def test_checkpointing_changes_nothing(run, tmp_path):
    for on in (False, True):
        run(str(on), with_(max_steps=3, save_every=3, checkpointing=on))
    one, other = (state(tmp_path / name, 3)["network"] for name in ("False", "True"))
    assert_equal(one, other)


@pytest.mark.parametrize(
    "precision",
    ["bf16", pytest.param("fp16", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))],
)
def test_half_precision_trains_much_like_float32(precision, run, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "AVX512")  # a slower CPU would take float32
    for name in ("fp32", precision):
        run(name, with_(max_steps=2, batch_size=2, report_every=1, precision=name))
        AcceleratorState._reset_state(reset_partial_state=True)  # else the first precision serves for both
    whole, half = ([line["mse"] for line in lines(tmp_path / name)] for name in ("fp32", precision))
    assert half == pytest.approx(whole, rel=0.01)
    assert half != whole


def test_a_loss_that_is_not_finite_stops_the_run_and_spares_the_last_state(run, tmp_path):
    run(recipe=with_(max_steps=10))
    with pytest.raises(InpaintingError, match=r"not finite .*BraTS-GLI-0000\d-000 slice \d+"):
        run(recipe=with_(max_steps=30, lr=1e30), resume=False, name="broken")
    assert not list((tmp_path / "broken" / "state").glob("*.pt"))
    assert state(tmp_path / "run", 10)["step"] == 10


def test_a_gradient_that_is_not_finite_is_found_before_the_state_is_saved(run, tmp_path, monkeypatch):
    def spoil(_accelerator, network, _config):
        for parameter in network.parameters():
            parameter.grad.fill_(float("nan"))

    monkeypatch.setattr(training, "_clip", spoil)
    with pytest.raises(InpaintingError, match="the network is not finite at step 1"):
        run(recipe=with_(save_every=1))
    assert not list((tmp_path / "run").glob("**/*.pt"))
    assert not (tmp_path / "run" / "weights.safetensors").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_writes_the_state_and_shows_in_the_exit_code(number, prepared, tmp_path):
    recipe = with_(max_steps=100_000, report_every=1)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    paths = ("--data-path", prepared[1], "--output-path", tmp_path / "run", "--cache-path", prepared[0])
    command = [sys.executable, "-m", "brats_inpainting", "train", *paths, "--parameters-file", tmp_path / "recipe.yaml"]
    with subprocess.Popen([*map(str, command)], stderr=subprocess.PIPE, text=True) as process:
        while "step 2 of" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(number)
        process.stderr.read()
        assert process.wait() == 128 + number
    (saved,) = (tmp_path / "run" / "state").iterdir()
    assert torch.load(saved, weights_only=True)["step"] == int(saved.stem) >= 2
    assert (tmp_path / "run" / "weights.safetensors").exists()


def test_a_folder_with_a_run_is_neither_overwritten_nor_continued_with_another_recipe(run):
    run(recipe=with_(max_steps=1))
    with pytest.raises(ConfigError, match="Use --resume to continue it"):
        run()
    with pytest.raises(ConfigError, match="another batch_size, lr"):
        run(recipe=with_(lr=1e-4, batch_size=2), resume=True)


def test_minutes_end_a_run_and_it_says_that_it_is_not_finished(run, caplog):
    caplog.set_level("INFO")
    run(recipe=with_(max_steps=100_000), minutes=0.01)
    assert "steps left; use --resume" in caplog.messages[-1]
    caplog.clear()
    run("short", recipe=with_(max_steps=2))
    assert caplog.messages[-1] == "step 2: finished"


def test_only_the_last_states_are_kept(run, tmp_path):
    run(recipe=with_(save_every=4, keep=2))
    assert sorted(path.stem for path in (tmp_path / "run" / "state").iterdir()) == ["00000016", "00000020"]


def test_held_out_cases_are_filled_scored_drawn_and_never_trained_on(run, tmp_path):
    recipe = with_(held_out=1, max_steps=4, save_every=4, validate_every=2, validation_cases=1)
    weights = checkpoint.load(run(recipe=recipe, fold=1))
    scores = [line for line in lines(tmp_path / "run") if "ssim" in line]
    assert [line["step"] for line in scores] == [2, 4]
    best = max(scores, key=lambda line: line["ssim"])
    assert weights.notes["step"] == best["step"]
    split = json.loads((tmp_path / "run" / "folds.json").read_text())["validation"]
    assert len({*split[0], *split[1]}) == 2
    assert [path.name for path in sorted((tmp_path / "run" / "pictures").iterdir())] == [
        f"{split[1][0]}-000-{step:08d}.png" for step in (2, 4)
    ]


def test_a_folder_of_its_own_validates_and_all_other_subjects_train(run, prepared, tmp_path):
    others = tmp_path / "others"
    for case in ("BraTS-GLI-00001-000", "BraTS-GLI-00002-000"):
        new = case.replace("000", "900", 1)
        (others / new).mkdir(parents=True)
        for path in (prepared[1] / case).iterdir():
            (others / new / path.name.replace(case, new)).write_bytes(path.read_bytes())
    flat = others / "BraTS-GLI-90001-000" / "BraTS-GLI-90001-000-t1n.nii.gz"
    nib.save(nib.Nifti1Image(np.ones((72, 72, 24), np.float32), LPS), flat)  # nothing can be scored in it
    recipe = with_(held_out=1, max_steps=2, validate_every=2)
    run(recipe=recipe, validation_path=others)
    assert "ssim" in lines(tmp_path / "run")[-1]
    assert [path.name for path in (tmp_path / "run" / "pictures").iterdir()] == ["BraTS-GLI-90002-000-00000002.png"]
    assert json.loads((tmp_path / "run" / "folds.json").read_text())["validation"] == [[], []]
    with pytest.raises(ConfigError, match="in training and validation data"):
        run("again", recipe=recipe, validation_path=prepared[1])


@pytest.mark.parametrize(("precision", "cpu"), [("bf16", "AVX2"), ("fp16", "AVX512")])
def test_a_cpu_without_a_half_precision_trains_in_float32_and_says_so(precision, cpu, run, monkeypatch, caplog):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    whole = run("whole", recipe=with_(max_steps=2))
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: cpu)
    half = run("half", recipe=with_(max_steps=2, precision=precision))
    assert caplog.messages.count(f"this CPU has no {precision}, training in float32") == 1
    networks = (checkpoint.load(path).network for path in (whole, half))
    assert all(torch.equal(a, b) for a, b in zip(*(n.parameters() for n in networks), strict=True))


def test_a_state_is_exported_for_us_and_for_guided_diffusion(run, tmp_path, caplog):
    run()
    stored = state(tmp_path / "run")
    written = export_state(tmp_path / "run" / "state" / "00000020.pt", tmp_path / "export")
    assert [path.name for path in written] == [
        "weights-000020.safetensors",
        "savedmodel000020.pt",
        "emasavedmodel_0.9_000020.pt",
        "emasavedmodel_0.99_000020.pt",
    ]
    loaded = [checkpoint.load(path) for path in written]
    assert_equal(dict(loaded[1].network.state_dict()), dict(stored["network"]))
    averaged = {name.removeprefix("module."): t for name, t in stored["averages"][1].items() if name != "n_averaged"}
    assert_equal(dict(loaded[3].network.state_dict()), averaged)
    assert [weights.ema for weights in loaded] == [True, False, True, True]
    assert "cannot store" in caplog.text  # x_0 prediction, [−1, 1], windows
    assert export_state(tmp_path / "run", tmp_path / "again")[0].name == "weights-000020.safetensors"
    with pytest.raises(ConfigError, match="not a state"):
        export_state(written[1], tmp_path / "export")


@pytest.mark.slow
def test_one_slice_is_learned_by_heart(prepared, tmp_path):
    """overfit.yaml, the first diagnosis, on the full set: the error of the noise inside the mask falls below 1 %.

    It does so with two slices a batch, too, in a third of the time.
    """
    recipe = with_(read_recipe(PARAMETERS / "overfit.yaml"), batch_size=2)
    cached, scans = prepared
    first = Epoch(cache.prepare(cache.find(scans), cached), [], recipe, 0)[0]
    batch = augment(default_collate([first] * 20), recipe.augmentation)

    def error(network):
        schedule, low, high = Schedule.linear(recipe.diffusion.steps), *recipe.diffusion.image_range
        x0, b = (low + (high - low) * image for image in (batch.truth_N1V, batch.context_N1V))
        mask = batch.mask_N1V
        t = torch.arange(0, recipe.diffusion.steps, recipe.diffusion.steps // 20)
        noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1))
        x_t = schedule.q_sample(x0, t, noise)
        with torch.no_grad():
            out = network(torch.cat([b, mask, x_t], dim=1), t)
        eps = predict(out, x_t, t, schedule, recipe.diffusion, clamped=False).eps
        return ((eps - noise).square() * mask).sum(dim=(1, 2, 3)) / mask.sum(dim=(1, 2, 3))

    before = error(fresh(recipe))
    weights = checkpoint.load(train(scans, tmp_path / "run", recipe, cache_path=cached))
    assert (error(weights.network) / before).max() < 0.01  # at every one of twenty timesteps


def test_the_papers_recipe_is_the_default_and_builds_its_network():
    recipe = read_recipe(PARAMETERS / "paper.yaml")
    assert recipe == TrainConfig()
    assert sum(p.numel() for p in UNet(recipe.unet).parameters()) == 113_672_066


@pytest.mark.slow
def test_the_papers_recipe_takes_a_real_step_on_a_cpu(run, tmp_path):
    """A whole slice through all of the paper's levels, a quarter as wide: test_golden.py has the full width."""
    recipe = read_recipe(PARAMETERS / "paper.yaml")
    narrow = recipe.unet.model_copy(update={"width": recipe.unet.width // 4})
    changes = {"max_steps": 1, "batch_size": 1, "checkpointing": True, "held_out": 0, "report_every": 1}
    run(recipe=with_(recipe.model_copy(update={"unet": narrow}), **changes))
    (line,) = lines(tmp_path / "run")
    assert line["step"] == 1
    assert 0 < line["loss"] < 10  # 1 for the noise, little for the bound


@pytest.mark.parametrize("name", sorted(path.name for path in PARAMETERS.glob("[!i]*.yaml")))  # infer-*.yaml fill
def test_every_recipe_that_is_shipped_can_be_read(name):
    assert read_recipe(PARAMETERS / name).max_steps > 0


def test_a_bad_recipe_is_refused_with_every_key_and_line(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("lr: 1\nmax_stepz: 3\nunet:\n  widht: 32\nbatch_size: 0\n")
    with pytest.raises(ConfigError) as refused:
        read_recipe(path)
    for said in (
        "line 2: max_stepz: unknown key",
        "Did you mean max_steps?",
        "line 3: unet.widht",
        "line 5: batch_size: 0",
    ):
        assert said in str(refused.value)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_recipe(tmp_path / "nowhere.yaml")


def test_windows_that_do_not_fit_are_refused():
    for changes in ({"diffusion": {"window": 240}}, {"unet": {"multipliers": (1,) * 7}, "diffusion": {"window": 48}}):
        with pytest.raises(ValueError, match="windows of"):
            TrainConfig.model_validate(changes)


def test_scans_without_masks_are_refused_for_masks_from_files(tmp_path):
    nib.save(nib.Nifti1Image(brain((40, 40, 6)), LPS), tmp_path / "A-t1n.nii.gz")
    with pytest.raises(ConfigError, match="masks: synthetic"):
        train(tmp_path, tmp_path / "run", RECIPE)


def test_a_damaged_last_state_and_a_torn_line_do_not_hinder_a_resumption(run, tmp_path, caplog):
    run()
    (tmp_path / "run" / "state" / "00000020.pt").write_bytes(b"damaged")
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2')
    run(resume=True)
    assert "damaged; using the previous state" in caplog.text
    assert [line["step"] for line in lines(tmp_path / "run")] == [10, 20]


def test_a_batch_that_cannot_be_shared_is_refused(run):
    with pytest.raises(ConfigError, match="cannot be divided evenly among 1 processes in 3 parts"):
        run(recipe=with_(batch_size=4, accumulate=3))


def test_the_bundled_recipe_stays_within_five_gflop_a_window():
    recipe = read_recipe(PARAMETERS / "small.yaml")
    side = recipe.diffusion.window
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        UNet(recipe.unet)(torch.zeros(1, 3, side, side), torch.zeros(1))
    assert flops.get_total_flops() == pytest.approx(3.7e9, rel=0.01)  # as the model card says, rounded
    weights = checkpoint.load(BUNDLED["small-2"])
    assert weights.network.config == recipe.unet
    assert weights.diffusion == recipe.diffusion


def test_the_papers_folds_hold_out_ten_of_1251_subjects_each():
    files = [cache.TrainingCase(f"BraTS-GLI-{i:05d}-000", Path(), None, None) for i in range(1251)]
    first, second = folds.split(files, held_out=10, seed=0)
    assert (len(first), len(second)) == (10, 10)
    assert not {*first} & {*second}
    assert folds.split(files, held_out=10, seed=0) == [first, second]
    assert folds.split(files, held_out=10, seed=1) != [first, second]


def test_muon_learns_and_resumes_bit_for_bit(run, tmp_path):
    recipe = with_(unet=UNET.model_copy(update={"multipliers": (1, 1)}), optimiser="muon", lr=3e-3, report_every=5)
    run("whole", recipe)
    run("halves", with_(recipe, max_steps=10))
    run("halves", recipe, resume=True)
    whole, halves = (
        checkpoint.load(tmp_path / name / "weights.safetensors").network.state_dict() for name in ("whole", "halves")
    )
    assert all(torch.equal(whole[name], halves[name]) for name in whole)
    rows = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    errors = [row["mse"] for row in rows if "loss" in row]  # the bound of a single early timestep may outweigh all
    assert errors[-1] < 0.7 * errors[0]


def test_muon_in_batched_products_is_torchs_muon():
    shapes = [(32, 16, 3, 3), (32, 16, 3, 3), (200, 16, 3, 3), (64, 300)]  # the third is taller than wide
    ours = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    theirs = [torch.nn.Parameter(p.detach().flatten(1).clone()) for p in ours]
    bias = torch.nn.Parameter(torch.zeros(32))
    bias.grad = torch.ones(32)
    muon = optimiser.Muon([*ours, bias], lr=0.1)
    reference = torch.optim.Muon(theirs, lr=0.1, weight_decay=0, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.flatten(1)
        muon.step()
        reference.step()
    for p, q in zip(ours, theirs, strict=True):
        assert torch.allclose(p.flatten(1), q, atol=1e-2)  # bfloat16


@pytest.mark.parametrize("dims", [2, 3])
def test_muon_moves_filters_alike_in_all_directions_and_the_rest_as_adamw(dims):
    torch.manual_seed(0)
    conv = CONVOLUTION[dims]
    network = torch.nn.Sequential(conv(16, 32, 3), torch.nn.GroupNorm(4, 32), conv(32, 1, 3))
    network.to(memory_format=MEMORY_FORMAT[dims])
    before = [p.detach().clone() for p in network.parameters()]
    chosen = optimiser.choose(network, RECIPE.model_copy(update={"optimiser": "muon", "lr": 0.01}))
    network(torch.randn(2, 16, *[8] * dims)).square().mean().backward()
    chosen.step()
    moved = [p.detach() - old for p, old in zip(network.parameters(), before, strict=True)]
    strengths = torch.linalg.svdvals(moved[0].flatten(1))
    assert strengths.max() < 2 * strengths.min()
    assert moved[0].square().mean().sqrt() == pytest.approx(0.2 * 0.01, rel=0.2)  # as large as AdamW's, equation 4
    assert moved[-1].abs() == pytest.approx(0.01 / 3, rel=1e-3)


def test_training_begins_with_given_weights_and_says_so_in_what_it_writes(run):
    first = run("first")
    second = run("second", with_(max_steps=1, lr=1e-9), initial_weights=first)
    old, new = checkpoint.load(first), checkpoint.load(second)
    for name, tensor in old.network.state_dict().items():
        assert torch.allclose(new.network.state_dict()[name], tensor, atol=1e-3)
    assert old.sha256 in second.read_bytes()[:20000].decode(errors="replace")
    with pytest.raises(ConfigError, match="network or diffusion differ from the recipe's"):
        run("third", with_(unet=UNET.model_copy(update={"multipliers": (1, 2)})), initial_weights=first)


def test_other_initial_weights_of_a_resumed_run_are_ignored_with_a_warning(run, caplog):
    first, other = run("first", with_(max_steps=1)), run("other", with_(max_steps=1, seed=1))
    run("second", with_(max_steps=1), initial_weights=first)
    for steps, initial, ignored in ((2, None, False), (3, first, False), (4, other, True)):
        caplog.clear()
        run("second", with_(max_steps=steps), initial_weights=initial, resume=True)
        assert ("--initial-weights is ignored: the run that --resume continues" in caplog.text) == ignored


BOXES = with_(
    unet={"dims": 3, "patch": 2, "position": True, "in_channels": 6, "width": 32, "multipliers": (1,), "blocks": 1}
    | {"attention_at": (), "out_channels": 1},
    diffusion={"prediction": "x0", "image_range": (-1, 1), "window": 16},
    augmentation={"flip": True, "affine": 10, "elastic": 1, "contrast": 0.06, "gamma": 0.3}
    | {"bias": 0.06, "noise": 0.01, "position": 0.04},
    optimiser="muon",
    lr=3e-3,
    clip=4.0,
    ema_warmup=True,
    last_timestep=0.5,
    weighting="region",
    weight_outside=0.05,
    ssim=0.12,
    validation={"sampler": "ddim", "steps": 1, "noise": "independent", "smoothing": 0},
)


def test_training_in_three_dimensions_resumes_bit_for_bit_and_validates(run, tmp_path):
    recipe = with_(BOXES, precision="bf16", max_steps=8, save_every=4, report_every=4)
    validated = with_(recipe, held_out=1, validate_every=8, validation_cases=1)
    weights = checkpoint.load(run("whole", validated))
    run("halves", with_(validated, max_steps=4, validation_cases=0))
    run("halves", with_(validated, validation_cases=0), resume=True)
    assert_equal(*(state(tmp_path / name, 8)["network"] for name in ("whole", "halves")))
    assert_equal(*(state(tmp_path / name, 8)["averages"] for name in ("whole", "halves")))
    assert weights.network.config == recipe.unet
    scores = lines(tmp_path / "whole")[-1]
    assert 0 < scores["ssim"] < 1
    assert all(0 < line["ssim_term"] < 0.06 for line in lines(tmp_path / "halves"))  # half of 0.12 × (1 − SSIM)


def test_a_network_of_boxes_learns_to_see_the_noise(run, tmp_path):
    diffusion = BOXES.diffusion.model_copy(update={"prediction": "eps"})
    run(recipe=with_(BOXES, diffusion=diffusion, ssim=0.0, max_steps=30, save_every=30))
    losses = [line["loss"] for line in lines(tmp_path / "run")]
    assert losses[-1] < 0.6 * losses[0]


def test_a_moving_average_that_warms_up_forgets_the_first_weights(run, tmp_path):
    last = {}
    for warm in (False, True):
        run(str(warm), with_(max_steps=3, save_every=1, keep=3, ema=(0.999,), ema_warmup=warm))
        saved = [state(tmp_path / str(warm), step) for step in (1, 2, 3)]
        name = next(name for name in saved[0]["network"] if name.startswith("out.2"))
        networks, last[warm] = [one["network"][name] for one in saved], saved[2]["averages"][0]["module." + name]
    rates = {False: (0.999, 0.999), True: (2 / 11, 3 / 12)}
    for warm, (second, third) in rates.items():
        expected = third * (second * networks[0] + (1 - second) * networks[1]) + (1 - third) * networks[2]
        torch.testing.assert_close(last[warm], expected)


def test_channels_that_do_not_fit_the_inputs_are_refused():
    with pytest.raises(ValueError, match="in_channels is 3"):
        TrainConfig.model_validate({"unet": {"position": True}})


CONSISTENT = {"prediction": "x0", "image_range": (-1, 1), "window": 32, "consistency": True}
STUDENT = {"diffusion": CONSISTENT, "levels": 6, "max_steps": 6, "save_every": 3}


def teacher(path, seed):
    """Write random weights of a diffusion model as a teacher."""
    diffusion = DiffusionConfig(**CONSISTENT | {"consistency": False})
    torch.manual_seed(seed)
    network = UNet(UNET)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    checkpoint.save(path, network.state_dict(), unet=UNET, diffusion=diffusion, ema=True, notes={})
    return path


def test_distillation_resumes_bit_for_bit_with_its_own_teacher(run, tmp_path):
    recipe, own = with_(**STUDENT), teacher(tmp_path / "own.safetensors", 1)
    whole = run("whole", recipe, initial_weights=own)
    run("half", with_(recipe, max_steps=3), initial_weights=own)
    with pytest.raises(ConfigError, match="distilled from a diffusion model"):
        run("half", recipe, resume=True)
    with pytest.raises(ConfigError, match="started from SHA-256"):
        run("half", recipe, resume=True, initial_weights=teacher(tmp_path / "other.safetensors", 2))
    resumed = run("half", recipe, resume=True, initial_weights=own)
    assert checkpoint.sha256(resumed) == checkpoint.sha256(whole)
    assert checkpoint.load(whole).diffusion.consistency
    assert checkpoint.load(whole).notes["initial_weights"] == checkpoint.sha256(own)


@pytest.mark.parametrize("name", ["sequential", "consistency"])
def test_the_recipes_of_the_papers_discussion_train_and_fill(name, run, tmp_path):
    whole = read_recipe(PARAMETERS / f"{name}.yaml")
    unet = UNET.model_copy(update={"in_channels": whole.unet.in_channels, "out_channels": 1})
    small = {"unet": unet.model_dump(), "held_out": 1, "max_steps": 2, "validate_every": 2, "save_every": 2}
    diffusion = whole.diffusion.model_copy(update={"window": 32})
    recipe = with_(whole, **small, diffusion=diffusion.model_dump(), masks="files")
    first = tmp_path / "first.safetensors"
    three = unet.model_copy(update={"in_channels": 3})
    without = diffusion.model_copy(update={"context": "none", "consistency": False})
    checkpoint.save(first, UNet(three).state_dict(), unet=three, diffusion=without, ema=True, notes={})
    path = run("recipe", recipe, initial_weights=first)
    shape = (64, 64, 12)
    machine = Inpainter.load(path)
    assert (machine.sampling.sampler, machine.sampling.steps) == (whole.validation.sampler, whole.validation.steps)
    filled = machine.inpaint(brain(shape), lesion(shape))
    assert np.isfinite(filled.image).all()
