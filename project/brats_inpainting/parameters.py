"""Parameters files with this package's option names, or guided-diffusion's as in the paper's submission."""

from __future__ import annotations

import difflib
import reprlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveInt, ValidationError
from yaml.constructor import SafeConstructor

from brats_inpainting.config import PRESETS, Augmentation, DiffusionConfig, SamplingConfig, TrainConfig, UNetConfig
from brats_inpainting.errors import ConfigError

MAX_BYTES = 100_000
NETWORK = {"image_size", "num_channels", "channel_mult", "num_res_blocks", "attention_resolutions", "num_heads"}
PROCESS = {"diffusion_steps", "predict_xstart", "learn_sigma"}
MULTIPLIERS = {256: (1, 1, 2, 2, 4, 4), 128: (1, 1, 2, 3, 4), 64: (1, 2, 3, 4)}  # guided-diffusion's defaults
TRANSLATED = {"multipliers": "channel_mult", "attention_at": "attention_resolutions", "heads": "num_heads"}
IGNORED = {  # training, logging and paths of the authors' scripts
    *("data_dir", "dropout", "ema_rate", "fp16_scale_growth", "log_dir", "log_interval", "lr", "lr_anneal_steps"),
    *("microbatch", "model_path", "num_samples", "rescale_learned_sigmas", "resume_checkpoint", "save_interval"),
    *("schedule_sampler", "use_checkpoint", "use_fp16", "use_kl", "weight_decay"),
}

Numbers = Annotated[tuple[PositiveInt, ...], BeforeValidator(lambda text: str(text).split(",") if text else ())]
Respacing = Annotated[
    str,
    BeforeValidator(lambda text: "" if text is None else str(text)),
    Field(pattern=r"^((ddim)?[1-9][0-9]{0,5})?$"),
]


class _File(SamplingConfig):
    """All accepted keys; a ``Literal`` with one value is an unsupported option of guided-diffusion."""

    preset: Annotated[str, Field(pattern=f"^({'|'.join(PRESETS)})$")] | None = None
    seed: NonNegativeInt | None = None
    device: str | None = None
    batch_size: PositiveInt | None = None

    image_size: PositiveInt = 256
    num_channels: Annotated[PositiveInt, Field(multiple_of=32, le=4096)] = 128
    channel_mult: Numbers = ()
    num_res_blocks: Annotated[PositiveInt, Field(le=64)] = 2
    attention_resolutions: Numbers = (16,)
    num_heads: PositiveInt = 1
    learn_sigma: bool = True
    diffusion_steps: Annotated[PositiveInt, Field(le=100_000)] = 1000
    predict_xstart: bool = False
    timestep_respacing: Respacing = ""
    use_ddim: bool = False
    num_ensemble: PositiveInt = 1
    slices_per_sampling: PositiveInt | None = None
    gpu_id: str | None = None

    noise_schedule: Literal["linear"] = "linear"
    class_cond: Literal[False] = False
    resblock_updown: Literal[False] = False
    use_scale_shift_norm: Literal[False] = False
    use_new_attention_order: Literal[False] = False
    rescale_timesteps: Literal[False] = False
    num_head_channels: Literal[-1] = -1
    num_heads_upsample: Literal[-1] = -1
    clip_denoised: Literal[True] = True


@dataclass
class Parameters:
    """The settings of a parameters file; ``None`` or empty if not set.

    ``all_steps`` is the number of diffusion steps if the file requests the full chain by guided-diffusion's names and
    sets no preset, sampler or steps: the paper's procedure.
    """

    preset: str | None = None
    all_steps: int | None = None
    sampling: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    device: str | None = None
    batch_size: int | None = None
    unet: UNetConfig | None = None
    diffusion: DiffusionConfig | None = None

    @property
    def bundled(self) -> Path | None:
        """The bundled slice-wise weights if the file describes a network, which means a slice-wise one."""
        return Path("small-2") if self.unet else None

    def loading(self) -> dict[str, Any]:
        """Return arguments of ``Inpainter.load``."""
        return {"at_most": self.batch_size, "unet": self.unet, "diffusion": self.diffusion, **self.sampling}

    def __str__(self) -> str:
        """List the settings of the file."""
        given = {name: value for name, value in vars(self).items() if value not in (None, {})}
        return "; ".join(f"{name} {value}" for name, value in given.items()) or "no settings"


def read(path: Path) -> Parameters:
    """Read a parameters file; an empty file gives the defaults.

    Raises:
        ConfigError: naming the unusable keys and their lines.
    """
    values, lines = _load(path)
    unknown = values.keys() - _File.model_fields.keys() - IGNORED
    if unknown and unknown <= TrainConfig.model_fields.keys():
        raise ConfigError(f"{path}: a training recipe ({', '.join(sorted(unknown))})\n  Use it with the command train.")
    try:
        return _translated(_File.model_validate({k: v for k, v in values.items() if k not in IGNORED}))
    except ValidationError as error:
        raise _refusal(path, lines, error, {*_File.model_fields, *IGNORED}) from error


def read_recipe(path: Path) -> TrainConfig:
    """Read a training recipe; an empty file gives the paper's.

    Raises:
        ConfigError: naming the unusable keys and their lines.
    """
    values, lines = _load(path)
    try:
        return TrainConfig.model_validate(values)
    except ValidationError as error:
        models = (TrainConfig, UNetConfig, DiffusionConfig, Augmentation, SamplingConfig)
        raise _refusal(path, lines, error, {name for model in models for name in model.model_fields}) from error


def _refusal(path: Path, lines: dict[str, int], error: ValidationError, known: set[str]) -> ConfigError:
    """Return the error that lists each unusable value with line and reason, and a suggestion for unknown keys."""
    messages = []
    for problem in error.errors():
        # the check of heads against width has no location
        names = [part for part in problem["loc"] if isinstance(part, str)] or ["heads"]
        key = TRANSLATED.get(names[0], names[0])
        why = f"{reprlib.repr(problem['input'])}: {problem['msg']}"
        if problem["type"] == "extra_forbidden":
            near = difflib.get_close_matches(names[-1], known, 1)
            why = f"unknown key\n  {f'Did you mean {near[0]}?' if near else 'Remove it.'}"
        fields = ".".join([key, *filter(str.isidentifier, names[1:])])  # without pydantic's names of union members
        messages.append(f"{path}, line {lines.get(key, 1)}: {fields}: {why}")
    return ConfigError("\n".join(messages))


def _load(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """Return the values and the line number of each key."""
    node, read_value = _node(path), SafeConstructor().construct_object
    try:
        values = {str(key.value): _cleaned(read_value(value, deep=True)) for key, value in node.value}
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError) as error:  # odd dates and numbers
        raise ConfigError(f"{path}: holds a value that cannot be read\n  {error}") from error
    return values, {str(key.value): key.start_mark.line + 1 for key, _ in node.value}


def _node(path: Path) -> yaml.MappingNode:
    text = _text(path)
    try:
        refers_back = any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader))
        node = yaml.compose(text, yaml.SafeLoader) or yaml.MappingNode("", [])
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not YAML\n  {error}\n  Write one key: value per line.") from error
    if refers_back:
        raise ConfigError(f"{path}: contains YAML aliases (*), which are not allowed\n  Write the values out.")
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{path}: not a list of keys and values\n  Write one key: value per line.")
    return node


def _text(path: Path) -> str:
    try:
        if path.is_file() and path.stat().st_size <= MAX_BYTES:
            return path.read_text(encoding="utf-8")
        problem = f"not a file, or more than {MAX_BYTES:,} bytes"
    except (OSError, UnicodeDecodeError) as error:
        problem = str(error)
    raise ConfigError(f"{path}: cannot be read ({problem})\n  Give the path of a YAML file.")


def _cleaned(value: Any) -> Any:
    """Convert ``True,`` and ``False,`` (a trailing comma makes them strings) to bool."""
    if isinstance(value, str) and value.rstrip(" ,") in ("True", "False"):
        return value.startswith("True")
    return value


def _translated(file: _File) -> Parameters:
    given = file.model_fields_set
    whole_chain = "timestep_respacing" in given and not (file.timestep_respacing or file.use_ddim)
    return Parameters(
        preset=file.preset,
        all_steps=file.diffusion_steps if whole_chain and not given & {"preset", "sampler", "steps"} else None,
        sampling=_respaced(file) | file.model_dump(include=given & set(SamplingConfig.model_fields)),
        seed=file.seed,
        device=file.device or file.gpu_id,
        batch_size=file.slices_per_sampling or file.batch_size,
        unet=_unet(file) if given & NETWORK else None,
        diffusion=_diffusion(file) if given & (NETWORK | PROCESS) else None,
    )


def _unet(file: _File) -> UNetConfig:
    """Translate guided-diffusion's network keys; missing ones default to the paper's."""
    return UNetConfig(
        width=file.num_channels,
        multipliers=file.channel_mult or MULTIPLIERS.get(file.image_size, ()),
        blocks=file.num_res_blocks,
        attention_at=tuple(file.image_size // resolution for resolution in file.attention_resolutions),
        heads=file.num_heads,
        out_channels=2 if file.learn_sigma else 1,
    )


def _diffusion(file: _File) -> DiffusionConfig:
    return DiffusionConfig(steps=file.diffusion_steps, prediction="x0" if file.predict_xstart else "eps")


def _respaced(file: _File) -> dict[str, Any]:
    """Translate ``timestep_respacing``, ``use_ddim`` and ``num_ensemble``."""
    sampling: dict[str, Any] = {}
    if file.timestep_respacing or file.use_ddim:
        ddim = file.use_ddim or file.timestep_respacing.startswith("ddim")
        steps = file.timestep_respacing.removeprefix("ddim") or file.diffusion_steps
        sampling = {"sampler": "ddim" if ddim else "ddpm", "steps": int(steps)}
    if "num_ensemble" in file.model_fields_set:
        sampling["samples"] = file.num_ensemble
    return sampling
