"""Parameters files: ours and guided-diffusion's; errors name the key and the line."""

import os
from pathlib import Path

import pytest

from brats_inpainting import parameters
from brats_inpainting.config import DiffusionConfig, UNetConfig
from brats_inpainting.errors import ConfigError

RECIPES = Path(__file__).parents[1] / "workspace" / "parameters"
# The keys that the authors' scripts write, with the values of the paper's network.
PAPERS = """\
slices_per_sampling: 32 # a comment
gpu_id: 'cuda:0'
attention_resolutions: '16'
batch_size: 8
channel_mult: ''
class_cond: False
data_dir: ''
diffusion_steps: 1000
dropout: 0.0
ema_rate: '0.9999'
image_size: 256
learn_sigma: True
lr: 0.0001
noise_schedule: 'linear'
num_channels: 128
num_head_channels: -1
num_heads: 1
num_heads_upsample: -1
num_res_blocks: 2
predict_xstart: False
timestep_respacing: ''
use_ddim: False
clip_denoised: True,
num_ensemble: 1
"""


@pytest.fixture
def read(tmp_path):
    def from_text(text):
        path = tmp_path / "parameters.yaml"
        path.write_text(text)
        return parameters.read(path)

    return from_text


def test_an_empty_file_means_defaults(read):
    assert read("") == read("# nothing\n") == parameters.Parameters()


def test_the_papers_file_sets_network_and_batch_and_asks_for_every_step(read):
    said = read(PAPERS)
    assert said.unet == UNetConfig()
    assert said.diffusion.steps == 1000
    assert said.batch_size == 32
    assert said.device == "cuda:0"
    assert (said.preset, said.all_steps) == (None, 1000)
    assert said.sampling == {"samples": 1}


@pytest.mark.parametrize("line", ["preset: fast", "steps: 30", "sampler: heun", "use_ddim: True"])
def test_whatever_else_the_file_says_of_sampling_is_taken_instead_of_every_step(read, line):
    assert read(PAPERS.replace("use_ddim: False", line)).all_steps is None


def test_a_respacing_that_is_left_out_is_an_empty_one(read):
    assert read(PAPERS.replace("timestep_respacing: ''", "timestep_respacing:")).all_steps == 1000


def test_a_respacing_is_taken_instead_of_every_step(read):
    said = read(PAPERS.replace("timestep_respacing: ''", "timestep_respacing: '50'"))
    assert said.all_steps is None
    assert said.sampling == {"sampler": "ddpm", "steps": 50, "samples": 1}


@pytest.mark.parametrize(
    ("line", "sampling"),
    [
        ("timestep_respacing: '250'", {"sampler": "ddpm", "steps": 250}),
        ("timestep_respacing: ddim25", {"sampler": "ddim", "steps": 25}),
        ("use_ddim: True,", {"sampler": "ddim", "steps": 1000}),
        ("num_ensemble: 4", {"samples": 4}),
    ],
)
def test_guided_diffusions_sampling_keys_are_translated(read, line, sampling):
    assert read(line).sampling == sampling


def test_what_the_numbers_mean_can_be_said_alone(read):
    assert read("predict_xstart: 'True,'").diffusion == DiffusionConfig(prediction="x0")
    assert read("diffusion_steps: 500").diffusion == DiffusionConfig(steps=500)
    assert read("predict_xstart: 'false'").diffusion == DiffusionConfig()


def test_our_own_keys_are_read(read):
    said = read("preset: paper\nsteps: 7\nsampler: ddim\nseed: 3\nbatch_size: 2\nsmoothing: 0\n")
    assert (said.preset, said.seed, said.batch_size) == ("paper", 3, 2)
    assert said.sampling == {"steps": 7, "sampler": "ddim", "smoothing": 0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\nsampels: 2", r"line 2: sampels: unknown key\n.*samples"),
        ("a: [", "not YAML"),
        ("- 1\n- 2", "keys and values"),
        ("steps: many", "line 1: steps: 'many'"),
        ("seed: 1\nsteps: 0", "line 2: steps: 0"),
        ("seed: -1", "line 1: seed: -1"),
        ("smoothing: .inf", "line 1: smoothing: inf"),
        ("smoothing: [0, 0, -1]", "line 1: smoothing: -1: .*greater than or equal to 0"),
        ("num_channels: 128.5", r"num_channels: 128\.5"),
        ("num_channels: 100", "line 1: num_channels: 100: .*multiple of 32"),
        ("channel_mult: 1,b", "line 1: channel_mult: 'b'"),
        ("channel_mult: 0,1", "line 1: channel_mult: '0'"),
        ("image_size: 100", "channel_mult"),
        ("attention_resolutions: '0'", "line 1: attention_resolutions: '0'"),
        ("attention_resolutions: 512", "line 1: attention_resolutions: 0"),
        ("lr: 1\nnum_heads: 3", "line 2: num_heads: .*3 heads do not divide"),
        ("timestep_respacing: fast", "line 1: timestep_respacing: 'fast'"),
        ("timestep_respacing: '0'", "line 1: timestep_respacing: '0'"),
        ("use_ddim: True\ndiffusion_steps: abc", "line 2: diffusion_steps: 'abc'"),
        ("use_ddim: banana", "line 1: use_ddim: 'banana'"),
        ("preset: quick", "line 1: preset: 'quick'"),
        ("preset: [1]", r"line 1: preset: \[1\]"),
        ("use_scale_shift_norm: True", "line 1: use_scale_shift_norm: True: Input should be False"),
        ("noise_schedule: cosine", "line 1: noise_schedule: 'cosine'"),
        ("on: 1", "line 1: on: unknown key"),
        ("~: 1", "line 1: ~: unknown key"),
        ("seed: *one", "not YAML"),
        ("seed: &one [1]\nsteps: *one", "contains YAML aliases"),
        ("seed: &one [*one]", "contains YAML aliases"),
        ("seed: " + 2000 * "[", "not YAML"),
        ("seed: " + 2000 * "[" + 2000 * "]", "not YAML|seed"),
        ("seed: " + 5000 * "9", "cannot be read"),
        ("seed: 2001-99-99", "cannot be read"),
        ("seed: !!python/object/apply:os.system ['touch canary']", "cannot be read"),
        ('device: "\\U7fffffff"', "not YAML"),
        ("timestep_respacing: '" + 5000 * "9" + "'", "line 1: timestep_respacing"),
        ("diffusion_steps: 1000000000", "line 1: diffusion_steps: 1000000000"),
        ("num_channels: 3200000000", "line 1: num_channels: 3200000000"),
        ("smoothing: 1e9", "line 1: smoothing"),
        ("seed: '" + 50_000 * "x" + "'", "line 1: seed: 'xxxxxxxxxxxx...xxxxxxxxxxxxx'"),
        ("#" + 200_000 * "x", "more than 100,000 bytes"),
    ],
)
def test_what_cannot_be_used_is_refused_with_key_and_line(read, text, message):
    with pytest.raises(ConfigError, match=message):
        read(text)


@pytest.mark.parametrize("path", sorted(RECIPES.glob("[!i]*.yaml")), ids=lambda path: path.stem)
def test_a_training_recipe_is_called_one(path):
    with pytest.raises(ConfigError, match=r"a training recipe \(.*unet.*\)\n  Use it with the command train"):
        parameters.read(path)


def test_what_is_no_file_of_text_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")  # to read it would be to wait for ever
    (tmp_path / "latin.yaml").write_bytes(b"seed: \xff")
    for path in (tmp_path / "none.yaml", tmp_path, tmp_path / "pipe.yaml", tmp_path / "latin.yaml", Path("/dev/zero")):
        with pytest.raises(ConfigError, match="cannot be read"):
            parameters.read(path)


def test_the_papers_procedure_is_a_file_that_is_shipped():
    shipped = Path(__file__).parents[1] / "workspace" / "parameters" / "infer-paper.yaml"
    assert parameters.read(shipped).preset == "paper"
