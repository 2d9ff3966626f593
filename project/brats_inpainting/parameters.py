"""Parameters files: our own names, and guided-diffusion's, as the paper's submission ships them."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from brats_inpainting.config import DEFAULT_PRESET, PRESETS, DiffusionConfig, SamplingConfig, UNetConfig
from brats_inpainting.errors import ConfigError

OWN = {"preset", "seed", "device", "batch_size", *SamplingConfig.model_fields}
NETWORK = {"image_size", "num_channels", "channel_mult", "num_res_blocks", "attention_resolutions", "num_heads"}
PROCESS = {"learn_sigma", "diffusion_steps", "predict_xstart"}
SAMPLING = {"timestep_respacing", "use_ddim", "num_ensemble", "slices_per_sampling", "gpu_id"}
MUST_BE = {  # what our network cannot be told otherwise, and the values that it has
    "noise_schedule": "linear",
    "class_cond": False,
    "resblock_updown": False,
    "use_scale_shift_norm": False,
    "use_new_attention_order": False,
    "rescale_timesteps": False,
    "num_head_channels": -1,
    "num_heads_upsample": -1,
    "clip_denoised": True,
}
IGNORED = {  # training, logging and paths of the authors' scripts
    *("batch_size_sample", "data_dir", "dropout", "ema_rate", "fp16_scale_growth", "log_dir", "log_interval", "lr"),
    *("lr_anneal_steps", "microbatch", "model_path", "num_samples", "rescale_learned_sigmas", "resume_checkpoint"),
    *("save_interval", "schedule_sampler", "use_checkpoint", "use_fp16", "use_kl", "weight_decay"),
}
KNOWN = OWN | NETWORK | PROCESS | SAMPLING | set(MUST_BE) | IGNORED
MULTIPLIERS = {256: (1, 1, 2, 2, 4, 4), 128: (1, 1, 2, 3, 4), 64: (1, 2, 3, 4)}  # guided-diffusion's defaults


@dataclass
class Parameters:
    """What a parameters file asks for; ``None`` and empty where it says nothing."""

    preset: str | None = None
    sampling: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    device: str | None = None
    batch_size: int | None = None
    unet: UNetConfig | None = None
    diffusion: DiffusionConfig | None = None

    def __str__(self) -> str:
        """List what was said, and nothing else."""
        said = {name: value for name, value in vars(self).items() if value not in (None, {})}
        return "; ".join(f"{name} {value}" for name, value in said.items()) or "nothing"


def read(path: Path) -> Parameters:
    """Read a parameters file; an empty one means defaults.

    Raises:
        ConfigError: naming the key and the line that cannot be used.
    """
    values, lines = _load(path)
    try:
        return _parsed(values)
    except _WrongValue as error:
        raise ConfigError(f"{path}, line {lines[error.key]}: {error.key}: {error}") from error
    except ValidationError as error:
        problem = error.errors()[0]
        raise ConfigError(f"{path}: {problem['loc'][0]}: {problem['msg']}, not {problem['input']!r}") from error


def _parsed(values: dict[str, Any]) -> Parameters:
    for key, value in values.items():
        if key not in KNOWN:
            near = difflib.get_close_matches(key, KNOWN, 1)
            raise _WrongValue(key, f"unknown key\n  {f'Did you mean {near[0]}?' if near else 'Remove it.'}")
        if key in MUST_BE and value != MUST_BE[key]:
            raise _WrongValue(key, f"{value!r} is not supported\n  This network has {MUST_BE[key]!r}.")
    if values.get("preset", DEFAULT_PRESET) not in PRESETS:
        raise _WrongValue("preset", f"no preset named {values['preset']!r}\n  There are: {', '.join(PRESETS)}.")
    network = bool(NETWORK & set(values))
    return Parameters(
        preset=values.get("preset"),
        sampling=_respaced(values) | _own_sampling(values),
        seed=_integer(values, "seed", 0),
        device=str(values.get("device", values.get("gpu_id", ""))) or None,
        batch_size=_integer(values, "slices_per_sampling" if "slices_per_sampling" in values else "batch_size", 1),
        unet=_unet(values) if network else None,
        diffusion=_diffusion(values) if network else None,
    )


def _own_sampling(values: dict[str, Any]) -> dict[str, Any]:
    own = {key: values[key] for key in SamplingConfig.model_fields if key in values}
    try:
        SamplingConfig.model_validate(own)
    except ValidationError as error:
        problem = error.errors()[0]
        raise _WrongValue(str(problem["loc"][0]), f"{problem['input']!r}: {problem['msg']}") from error
    return own


class _WrongValue(ValueError):
    """A value of the wrong type or out of range."""

    def __init__(self, key: str, why: str) -> None:
        super().__init__(why)
        self.key = key


def _load(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """Return the values, and the line that each key stands on."""
    try:
        text = path.read_text()
        node = yaml.compose(text, yaml.SafeLoader)
        values = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})\n  Give the path of a YAML file.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML\n  {error}") from error
    if node is None:
        return {}, {}
    if not isinstance(values, dict) or not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{path}: not a list of keys and values\n  Write one key: value a line.")
    lines = {str(key.value): key.start_mark.line + 1 for key, _ in node.value}
    return {str(key): _cleaned(value) for key, value in values.items()}, lines


def _cleaned(value: Any) -> Any:
    """Undo the trailing comma of ``True,``, which makes a string of it."""
    if isinstance(value, str) and value.rstrip(" ,") in ("True", "False"):
        return value.startswith("True")
    return value


def _integer(values: dict[str, Any], key: str, least: int) -> int | None:
    value = values.get(key)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
        raise _WrongValue(key, f"{value!r} is no whole number of {least} or more")
    return value


def _numbers(values: dict[str, Any], key: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in str(values[key]).split(","))
    except ValueError as error:
        raise _WrongValue(key, f"{values[key]!r} is no list of whole numbers such as '1,2,4'") from error


def _unet(values: dict[str, Any]) -> UNetConfig:
    """Translate guided-diffusion's network keys; what is not said is the paper's."""
    image_size = _integer(values, "image_size", 1) or 256
    multipliers = _numbers(values, "channel_mult") if values.get("channel_mult") else MULTIPLIERS.get(image_size)
    if multipliers is None:
        raise _WrongValue("image_size", f"{image_size} has no standard multipliers\n  Say channel_mult.")
    attention = _numbers(values, "attention_resolutions") if "attention_resolutions" in values else (16,)
    return UNetConfig(
        width=_integer(values, "num_channels", 32) or 128,
        multipliers=multipliers,
        blocks=_integer(values, "num_res_blocks", 1) or 2,
        attention_at=tuple(image_size // resolution for resolution in attention),
        heads=_integer(values, "num_heads", 1) or 1,
        out_channels=2 if values.get("learn_sigma", True) else 1,
    )


def _diffusion(values: dict[str, Any]) -> DiffusionConfig:
    prediction = "x0" if values.get("predict_xstart") else "eps"
    return DiffusionConfig.model_validate(
        {"steps": _integer(values, "diffusion_steps", 1) or 1000, "prediction": prediction}
    )


def _respaced(values: dict[str, Any]) -> dict[str, Any]:
    """Translate ``timestep_respacing``, ``use_ddim`` and ``num_ensemble``."""
    sampling: dict[str, Any] = {}
    respacing = str(values.get("timestep_respacing") or "")
    steps = respacing.removeprefix("ddim")
    if steps and not steps.isdigit():
        raise _WrongValue("timestep_respacing", f"{respacing!r} is neither a number nor ddim and a number")
    if respacing or values.get("use_ddim"):
        ddim = values.get("use_ddim") or respacing.startswith("ddim")
        sampling = {"sampler": "ddim" if ddim else "ddpm", "steps": int(steps or values.get("diffusion_steps", 1000))}
    if samples := _integer(values, "num_ensemble", 1):
        sampling["samples"] = samples
    return sampling
