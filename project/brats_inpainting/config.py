"""Settings as frozen, validated models, and the registries of samplers, presets and baselines. Does not import torch.

A sampler is an entry of ``SAMPLERS`` and the function of that name in ``diffusion/samplers.py``; a baseline is an entry
of ``BASELINES`` and the function of that name in ``baselines.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from brats_inpainting.errors import ConfigError

FRAME = 224  # side of the paper's slices, §3.1
FRAME_MULTIPLE = 32  # sides of enlarged frames and windows are multiples of 2**5, for five downsamplings
BUNDLED = {name: Path(__file__).parent / "weights" / f"{name}.safetensors" for name in ("volume-2", "small-2")}
BUNDLED_WEIGHTS = BUNDLED["volume-2"]

Spacing = Literal["even", "trailing", "log_snr"]


class SamplerInfo(NamedTuple):
    """A sampler's number of network passes as a function of its steps, and its default spacing of timesteps."""

    passes: Callable[[int], int]
    spacing: Spacing


SAMPLERS = {
    "ddpm": SamplerInfo(lambda steps: steps, "even"),
    "ddim": SamplerInfo(lambda steps: steps, "even"),
    "dpmpp_2m": SamplerInfo(lambda steps: steps, "log_snr"),
    "heun": SamplerInfo(lambda steps: 2 * steps - 1, "log_snr"),
    "consistency": SamplerInfo(lambda steps: steps, "trailing"),
}
NOISE_MODES = ("independent", "shared", "slerp")
ORDERS = ("up", "down", "outward")
PRECISIONS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}  # name of the torch dtype
BASELINES = {"mean": None, "biharmonic": "skimage", "telea": "cv2", "mirror": None}  # optional package


def _one_of(names: Collection[str]) -> AfterValidator:
    """Return a validator that accepts the given names only."""

    def check(name: str) -> str:
        if name not in names:
            raise ValueError(f"Input should be {', '.join(names)}")
        return name

    return AfterValidator(check)


Precision = Annotated[str, _one_of(PRECISIONS)]


class Settings(BaseModel):
    """Base class of all settings: immutable; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class UNetConfig(Settings):
    """Architecture of the guided-diffusion U-Net; the defaults are the paper's 113,672,066-parameter network (§3.2).

    ``dims`` is 2 for patches of slices, 3 for boxes of the volume. Patches of ``patch`` voxels a side are folded into
    channels before the first level. Level ``i`` is ``width * multipliers[i]`` channels wide and works at 1 / 2**i of
    that resolution, with ``blocks`` residual blocks; self-attention with ``heads`` heads is at the downsampling factors
    ``attention_at``. With ``position``, three more input channels hold each voxel's coordinates in the head.
    """

    dims: Literal[2, 3] = 2
    patch: Literal[1, 2] = 1
    position: bool = False

    # upper bounds reject absurd values from untrusted files
    width: PositiveInt = Field(default=128, multiple_of=32, le=4096)
    multipliers: tuple[Annotated[PositiveInt, Field(le=64)], ...] = Field(
        default=(1, 1, 2, 2, 4, 4), min_length=1, max_length=8
    )
    blocks: PositiveInt = Field(default=2, le=64)
    attention_at: tuple[PositiveInt, ...] = (16,)
    heads: PositiveInt = 1
    in_channels: PositiveInt = Field(default=3, le=1024)
    out_channels: Literal[1, 2] = 2

    @model_validator(mode="after")
    def _heads_divide_the_channels(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"{self.heads} heads do not divide {self.width} channels")
        return self

    @property
    def stride(self) -> int:
        """The sides of inputs must be multiples of this."""
        return self.patch * 2 ** (len(self.multipliers) - 1)


def _rising(limits: tuple[float, float]) -> tuple[float, float]:
    if not limits[0] < limits[1]:
        raise ValueError("the first must be less than the second")
    return limits


class DiffusionConfig(Settings):
    """The diffusion process; stored with the weights. The defaults are the paper's (§2.1, §3.2).

    ``schedule`` names the noise levels. ``prediction`` is what output channel 0 estimates: the noise, the velocity or
    the clean image. Images scaled to [0, 1] are mapped to ``image_range`` before the network sees them, and x̂_0 is
    clamped to ``clamp`` in that range.
    ``window`` is the side, in voxels, of the training slices or windows.

    With ``context: previous`` a slice-wise network has the previous slice as one more input channel (paper §5): the
    truth's in training, the filled one's in sampling. With ``consistency`` it is a consistency model (Song et al.
    2023): its x̂_0 is blended with x_t so that at t = 0 it is x_t.
    """

    steps: PositiveInt = Field(default=1000, le=100_000)
    schedule: Literal["linear", "cosine"] = "linear"
    prediction: Literal["eps", "v", "x0"] = "eps"
    image_range: Annotated[tuple[FiniteFloat, FiniteFloat], AfterValidator(_rising)] = (0.0, 1.0)
    clamp: Annotated[tuple[FiniteFloat, FiniteFloat], AfterValidator(_rising)] = (-1.0, 1.0)
    window: PositiveInt = Field(default=FRAME, multiple_of=16)
    context: Literal["none", "previous"] = "none"
    consistency: bool = False


def input_channels(unet: UNetConfig, diffusion: DiffusionConfig) -> int:
    """Return how many input channels there are for a network: b, m, x_t, three positions, the previous slice."""
    return 3 + 3 * unet.position + (diffusion.context == "previous")


Sigma = Annotated[float, Field(ge=0, le=64, allow_inf_nan=False)]


class SamplingConfig(Settings):
    """How a case is sampled and post-processed.

    ``steps`` is how many of the T timesteps are visited, with ``spacing`` (see ``Schedule.timesteps``) or the sampler's
    default; ``samples`` are averaged, and their standard deviation is the uncertainty; ``noise`` is its correlation
    along z; networks that see the previous slice fill in ``order``, from the lowest slice up, from the highest down, or
    from the middle outwards; ``smoothing`` is the Gaussian's σ in voxels, one for all axes or one each for x, y and z;
    ``dilate`` grows the mask, in mm; ``resample`` brings scans to 1 mm; ``replace`` fills the mask only, or replaces
    whole slices and rescales the volume, as the paper does (§3.3).
    """

    sampler: Annotated[str, _one_of(SAMPLERS)] = "dpmpp_2m"
    steps: PositiveInt = 2
    spacing: Spacing | Literal["sampler"] = "sampler"
    samples: PositiveInt = 1
    noise: Annotated[str, _one_of(NOISE_MODES)] = "slerp"
    order: Annotated[str, _one_of(ORDERS)] = "up"
    smoothing: Sigma | tuple[Sigma, Sigma, Sigma] = 1.075  # the paper's
    dilate: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    resample: bool = True
    replace: Literal["mask", "slices"] = "mask"

    @property
    def passes(self) -> int:
        """Network passes per slice and sample."""
        return SAMPLERS[self.sampler].passes(self.steps)

    @property
    def timesteps(self) -> Spacing:
        """The spacing of timesteps, the sampler's default resolved."""
        return SAMPLERS[self.sampler].spacing if self.spacing == "sampler" else self.spacing


# Keys of a preset are the dimensions of the weights: 2 fills slice by slice, 3 the whole region at once.
_ALONG_Z = SamplingConfig(smoothing=(0, 0, 1.075))
_ONE_PASS = SamplingConfig(sampler="ddim", steps=1, noise="independent", smoothing=0)
_SAMPLE = _ONE_PASS.model_copy(update={"steps": 8})
PRESETS: dict[str, dict[int, SamplingConfig]] = {
    "fast": {2: _ALONG_Z, 3: _ONE_PASS},
    "realistic": {2: SamplingConfig(steps=8, smoothing=(0, 0, 0.5)), 3: _SAMPLE},
    "uncertainty": {
        2: _ALONG_Z.model_copy(update={"samples": 10}),
        3: _SAMPLE.model_copy(update={"samples": 4}),
    },
    "paper": {2: SamplingConfig(sampler="ddpm", steps=1000, noise="independent", resample=False, replace="slices")},
}
DEFAULT_PRESET = "fast"


def weights_path(weights: Path | str | None, preset: str) -> Path:
    """Return the path of a weights file or of bundled weights, by default the preset's."""
    if weights:
        return BUNDLED.get(str(weights), Path(weights))
    return BUNDLED_WEIGHTS if 3 in PRESETS.get(preset, {3: None}) else BUNDLED["small-2"]


def sampling(preset: str, dims: int, **overrides: Any) -> SamplingConfig:
    """Return a preset for 2D or 3D weights, with some of its fields replaced.

    Raises:
        ConfigError: when the preset is unknown or does not support these weights, or a value is out of range.
    """
    if preset not in PRESETS:
        raise ConfigError(f"no preset named {preset!r}\n  There are: {', '.join(PRESETS)}.")
    if dims not in PRESETS[preset]:
        raise ConfigError(
            f"preset {preset} fills slice by slice, but the weights fill volumes\n  Use --weights small-2."
        )
    try:
        return SamplingConfig.model_validate(PRESETS[preset][dims].model_dump() | overrides)
    except ValidationError as error:
        problem = max(error.errors(), key=lambda problem: len(problem["loc"]))  # the most specific one of a union
        raise ConfigError(f"{problem['loc'][0]}: {problem['msg']}, not {problem['input']!r}") from error


class Augmentation(Settings):
    """Augmentation of training windows; none by default, as in the paper.

    ``flip`` mirrors left and right, mask included. The other transforms change the image under a fixed mask:
    ``affine`` is the largest rotation about each axis in degrees, and the largest scaling in per cent; ``elastic`` is
    the largest standard deviation of a smooth displacement in voxels. ``contrast`` is the largest relative scaling of
    intensities, e**``gamma`` the largest exponent; ``bias`` is the standard deviation of the logarithm of a smooth
    field. ``noise`` is the largest standard deviation of noise added to the known voxels of the network's input, not
    to the truth. ``position`` is the largest shift, and relative scaling, of the position channels; ``previous`` the
    largest standard deviation of noise added to the previous slice inside the mask.
    """

    flip: bool = False
    affine: float = Field(default=0.0, ge=0, le=45)
    elastic: float = Field(default=0.0, ge=0, le=16)
    contrast: float = Field(default=0.0, ge=0, lt=1)
    gamma: float = Field(default=0.0, ge=0, le=2)
    bias: float = Field(default=0.0, ge=0, le=1)
    noise: float = Field(default=0.0, ge=0, le=0.5)
    position: float = Field(default=0.0, ge=0, le=0.5)
    previous: float = Field(default=0.0, ge=0, le=1)


class TrainConfig(Settings):
    """A training recipe; the defaults are the paper's (§3.2).

    ``batch_size`` is the number of windows per step over all processes, in ``accumulate`` parts each. A 2D network
    trains on all slices of the masks, a 3D one on ``windows_per_scan`` boxes of each scan per epoch.
    The learning rate rises over ``warmup`` steps and falls linearly over the last ``decay``; gradients are clipped to
    the norm ``clip`` if given. ``ema`` lists the decay rates of moving averages; inference uses the first.
    ``ema_warmup`` limits the rate to (1 + step) / (10 + step), so that short runs forget their initial weights.

    ``last_timestep`` is the share of each batch at t = T − 1; all other timesteps are uniform. The squared error is a
    weighted mean over the window: with ``weighting: voxel`` a voxel outside the mask weighs ``weight_outside`` times
    one inside; with ``region`` the loss is the mean inside plus ``weight_outside`` times the mean outside. ``ssim`` is
    the weight of 1 − SSIM of x̂_0 inside the mask, added for windows at t = T − 1. A consistency model is distilled
    from the initial weights on ``levels`` noise levels instead; its target is the last average of ``ema``.

    ``held_out`` subjects of each fold are used for validation, sampled with ``validation``. ``limit`` trains on the
    first few windows only. ``checkpointing`` trades time for memory.
    """

    unet: UNetConfig = UNetConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    masks: Literal["files", "synthetic", "both"] = "files"
    augmentation: Augmentation = Augmentation()
    windows_per_scan: PositiveInt = 64
    held_out: int = Field(default=10, ge=0)
    limit: PositiveInt | None = None
    seed: int = Field(default=0, ge=0)

    max_steps: PositiveInt = 2_850_000
    batch_size: PositiveInt = 8
    accumulate: PositiveInt = 1
    optimiser: Literal["adamw", "muon"] = "adamw"
    lr: float = Field(default=1e-4, gt=0)
    warmup: PositiveInt = 1
    decay: PositiveInt = 1
    clip: float | None = Field(default=None, gt=0)
    ema: tuple[Annotated[float, Field(ge=0, lt=1)], ...] = Field(default=(0.9999,), min_length=1)
    ema_warmup: bool = False
    last_timestep: float = Field(default=0.0, ge=0, le=1)
    weighting: Literal["voxel", "region"] = "voxel"
    weight_outside: float = Field(default=1.0, ge=0)
    ssim: float = Field(default=0.0, ge=0)
    levels: int = Field(default=18, ge=2)

    precision: Precision = "fp32"
    checkpointing: bool = False
    compile: bool = False
    workers: int = Field(default=0, ge=0)

    report_every: PositiveInt = 100
    save_every: PositiveInt = 5000
    keep: int = Field(default=2, ge=2)
    validate_every: PositiveInt = 10_000
    validation_cases: int = Field(default=3, ge=0)
    validation: SamplingConfig = SamplingConfig(steps=20)

    @model_validator(mode="after")
    def _windows_fit(self) -> Self:
        window, stride = self.diffusion.window, self.unet.stride
        most = FRAME if self.unet.dims == 2 else FRAME - stride
        if window > most or window % stride:
            raise ValueError(f"windows of {window} voxels: more than {most}, or not a multiple of the stride {stride}")
        return self

    @model_validator(mode="after")
    def _variants_fit(self) -> Self:
        previous, consistency = self.diffusion.context == "previous", self.diffusion.consistency
        if previous and (self.unet.dims == 3 or consistency):
            raise ValueError("context: previous is for slice-wise diffusion models, dims: 2 and consistency: false")
        if self.augmentation.previous and not previous:
            raise ValueError("augmentation.previous needs context: previous")
        if consistency and (self.ssim or self.levels > self.diffusion.steps):
            raise ValueError("a consistency model needs ssim: 0, and at most as many levels as steps")
        return self

    @model_validator(mode="after")
    def _channels_fit(self) -> Self:
        channels = input_channels(self.unet, self.diffusion)
        if self.unet.in_channels != channels:
            raise ValueError(
                f"in_channels is {self.unet.in_channels}, but b, m, x_t, positions and previous slice need {channels}"
            )
        return self
