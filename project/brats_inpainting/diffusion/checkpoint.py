"""Checkpoints: guided-diffusion's ``.pt`` files and our ``.safetensors``, loaded without executing code."""

from __future__ import annotations

import json
import logging
import os
import pickle
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from brats_inpainting.config import (
    BUNDLED,
    FRAME_MULTIPLE,
    DiffusionConfig,
    SamplingConfig,
    UNetConfig,
    input_channels,
)
from brats_inpainting.diffusion.unet import UNet
from brats_inpainting.errors import CheckpointError, ConfigError
from brats_inpainting.files import sha256
from brats_inpainting.host import muted

log = logging.getLogger(__name__)

METADATA = "brats_inpainting"
ENOUGH_STEPS = 25  # for weights that predict noise, whose error in x̂_0 is amplified at early timesteps
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Weights:
    """A network in evaluation mode, with its configuration and origin.

    ``ema``: whether the weights are a moving average, from the metadata or else the file name.
    """

    network: UNet
    diffusion: DiffusionConfig
    path: Path
    sha256: str
    ema: bool
    notes: dict[str, object] = field(default_factory=dict)

    def __str__(self) -> str:
        """Describe the file, the kind of weights and the number of parameters in one line."""
        kind = "moving average (EMA)" if self.ema else "raw weights, no moving average in the file name"
        parameters = sum(p.numel() for p in self.network.parameters())
        return f"{self.path.name}: {kind}, {parameters:,} parameters"


def find(folder: Path) -> Path | None:
    """Return the only weights file in a folder, preferring ``.safetensors``; ``None`` if the folder is empty.

    Raises:
        CheckpointError: the folder does not exist, has several weights files, or only other files.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder\n  Give the folder that holds the weights file.")
    found = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.pt"))
    others = [path for path in folder.iterdir() if not path.name.startswith((".", "README"))]
    if len(found) > 1 or (others and not found):
        names = ", ".join(sorted(path.name for path in found or others)[:5])
        what = "more than one weights file" if found else "no .safetensors or .pt"
        raise CheckpointError(f"{folder}: {what}, but {names}\n  Leave one there, or name one with --weights.")
    if not found:
        log.info("%s holds no weights: using the bundled ones", folder)
    return found[0] if found else None


def load(path: Path | str, *, unet: UNetConfig | None = None, diffusion: DiffusionConfig | None = None) -> Weights:
    """Read a weights file.

    Args:
        path: our ``.safetensors``, or guided-diffusion's ``.pt`` (a bare state dict, ``module.`` prefixes allowed).
        unet: the architecture, for a file that stores none; by default inferred from the shapes.
        diffusion: the diffusion settings, likewise; by default the paper's.

    Returns:
        The network in float32 on the CPU.

    Raises:
        CheckpointError: the file is missing, truncated, an optimiser state, not a weights file, or of another
            architecture.
    """
    path = Path(path)
    if not path.is_file():
        names = " or ".join(BUNDLED)
        raise CheckpointError(
            f"{path}: no such weights file\n  Give the path of a .safetensors or .pt file, or {names}."
        )
    if not os.access(path, os.R_OK):
        raise CheckpointError(f"{path}: cannot be read (permission denied)\n  Run chmod a+r on it.")
    if path.suffix == ".safetensors":
        state, stored = _read_safetensors(path)
    else:
        state, stored = _read_pickle(path), {}
    if stored and (unet or diffusion):
        log.warning("%s stores its network and diffusion settings; others are ignored", path.name)
    try:
        unet = UNetConfig.model_validate(stored["unet"]) if "unet" in stored else unet or _architecture(state)
        if diffusion is None or "diffusion" in stored:
            diffusion = DiffusionConfig.model_validate(stored.get("diffusion", {}))
    except (ValueError, LookupError, ZeroDivisionError) as error:
        raise CheckpointError(
            f"{path}: its tensors, or the settings stored with them, are not those of a guided-diffusion U-Net\n"
            f"  {len(state)} tensors, beginning with {', '.join(list(state)[:3])}.\n"
            "  Give an inpainting network of this family (model*.pt, ema*.pt, savedmodel*.pt or .safetensors)."
        ) from error
    with torch.device("meta"):  # allocates nothing before the weights are verified
        network = UNet(unet).eval().requires_grad_(requires_grad=False)
    _load_state(network, state, path)
    ema = bool(stored.get("ema", "ema" in path.name.lower()))
    notes = stored.get("notes", {})
    return Weights(network, diffusion, path, sha256(path), ema, notes if isinstance(notes, dict) else {})


def save(
    path: Path | str,
    state: Mapping[str, Tensor],
    *,
    unet: UNetConfig,
    diffusion: DiffusionConfig,
    ema: bool,
    notes: Mapping[str, object],
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write a state dict as ``.safetensors`` in ``dtype``, with the configurations and notes as metadata."""
    stored = {"unet": unet.model_dump(), "diffusion": diffusion.model_dump(), "ema": ema, "notes": dict(notes)}
    tensors = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in state.items()}
    save_file(tensors, path, metadata={METADATA: json.dumps(stored, sort_keys=True)})
    Path(path).chmod(0o644)  # safetensors gives access to the owner only; other users mount the weights


def with_enough_steps(sampling: SamplingConfig, weights: Weights, *, asked: bool) -> SamplingConfig:
    """Return the sampling, with 25 steps or more if the weights predict noise and its steps were not ``asked`` for."""
    enough = min(ENOUGH_STEPS, weights.diffusion.steps)
    if weights.diffusion.prediction != "eps" or sampling.steps >= enough:
        return sampling
    if asked:
        few = "%s predicts noise, for which %d steps are few: use %d or more"
        log.warning(few, weights.path.name, sampling.steps, enough)
        return sampling
    return sampling.model_copy(update={"steps": enough})


def for_consistency(sampling: SamplingConfig, weights: Weights, *, asked: Collection[str]) -> SamplingConfig:
    """Return the sampling, with one pass of a consistency model's sampler unless others were ``asked`` for."""
    if not weights.diffusion.consistency:
        return sampling
    changes = {"sampler": "consistency", "steps": 1}
    return sampling.model_copy(update={name: value for name, value in changes.items() if name not in asked})


def check_steps(sampling: SamplingConfig, weights: Weights) -> None:
    """Check that sampling takes no more steps than the weights were trained with.

    Raises:
        ConfigError: otherwise.
    """
    if sampling.steps > (most := weights.diffusion.steps):
        raise ConfigError(f"{sampling.steps} steps asked for\n  The weights were trained with {most}: ask for no more.")


def check_compatible(loaded: Weights) -> None:
    """Check that inference can provide a network's input channels and window size.

    Raises:
        CheckpointError: with the network's requirements.
    """
    unet, window = loaded.network.config, loaded.diffusion.window
    channels = input_channels(unet, loaded.diffusion)
    fits = window % unet.stride == 0 and FRAME_MULTIPLE % unet.stride == 0
    fits = fits and (unet.dims == 2 or loaded.diffusion.context == "none")
    if unet.in_channels != channels or not fits:
        more = ", three positions" * unet.position + ", previous slice" * (loaded.diffusion.context == "previous")
        raise CheckpointError(
            f"{loaded.path}: {unet.in_channels} channels, sides divisible by {unet.stride}, window {window}\n"
            f"  Give one of {channels} channels (b, m, x_t{more}) whose factor divides {FRAME_MULTIPLE} and its window."
        )


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, object]]:
    try:
        with safe_open(path, framework="pt") as file:
            stored = dict(json.loads((file.metadata() or {}).get(METADATA, "{}")))
            return {name: file.get_tensor(name) for name in file.keys()}, stored  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError, ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: truncated or not a .safetensors file ({error})\n  Fetch it again and compare its SHA-256."
        ) from error


def _read_pickle(path: Path) -> dict[str, Tensor]:
    _refuse_compressed(path)
    try:
        with muted():  # PyTorch's warnings are for programmers
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        what = "not a PyTorch file" if "Unsupported operand" in str(error) else "holds more than tensors"
        raise CheckpointError(
            f"{path}: {what}, and only tensors are unpickled\n"
            "  Give the network's plain state dict, as torch.save(model.state_dict(), …) writes it."
        ) from error
    except Exception as error:  # PyTorch may raise any exception for a damaged file
        reason = str(error).partition(". ")[0] or type(error).__name__
        # PyTorch advises disabling weights_only
        reason = reason.replace("Cannot use ``weights_only=True`` with ", "of another kind: ")
        raise CheckpointError(
            f"{path}: truncated or not a PyTorch file ({reason})\n  Fetch it again and compare its SHA-256."
        ) from error
    if isinstance(content, dict) and {"state", "param_groups"} <= set(content):
        raise CheckpointError(
            f"{path}: this is an optimiser state, not a network\n"
            "  Give the file in the same folder whose name begins with model, ema, savedmodel or emasavedmodel."
        )
    if not isinstance(content, dict) or not content or not all(map(_is_dense, content.values())):
        raise CheckpointError(
            f"{path}: not a state dict of named tensors\n  Give the network's plain state dict (model*.pt, ema*.pt)."
        )
    return {str(name).removeprefix("module."): tensor for name, tensor in content.items()}


def _refuse_compressed(path: Path) -> None:
    """Refuse a compressed zip file, which may be a zip bomb: PyTorch never compresses, but reads such files."""
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return  # an old format without zip, or damaged: torch.load reports it
    if unpacked > path.stat().st_size:
        raise CheckpointError(
            f"{path}: its {path.stat().st_size:,} bytes unpack to {unpacked:,}, but PyTorch never compresses\n"
            "  Take the file from its author, or save it again with torch.save."
        )


def _is_dense(value: object) -> bool:
    """Return whether a value is a dense, real, unquantised tensor."""
    if not isinstance(value, Tensor):
        return False
    return value.layout is torch.strided and not (value.is_meta or value.is_complex() or value.is_quantized)


def _architecture(state: Mapping[str, Tensor]) -> UNetConfig:
    """Infer the UNetConfig from parameter names and shapes; the number of heads is not recoverable, assume 1."""
    width = state["time_embed.0.weight"].shape[1]
    stem, last = state["input_blocks.0.0.weight"], state["out.2.weight"]
    dims = stem.ndim - 2
    patch = 1 if last.shape[0] <= 2 else 2
    in_channels = stem.shape[1] // patch**dims
    levels: list[list[int]] = [[]]
    attention = set()
    for i in range(1, 1 + max(int(name.split(".")[1]) for name in state if name.startswith("input_blocks."))):
        if f"input_blocks.{i}.0.op.weight" in state:
            levels.append([])
            continue
        levels[-1].append(state[f"input_blocks.{i}.0.in_layers.2.weight"].shape[0])
        if f"input_blocks.{i}.1.qkv.weight" in state:
            attention.add(2 ** (len(levels) - 1))
    return UNetConfig.model_validate(
        {
            "width": width,
            "multipliers": [channels[0] // width if channels else 0 for channels in levels],
            "blocks": len(levels[0]),
            "attention_at": sorted(attention),
            "in_channels": in_channels,
            "out_channels": last.shape[0] // patch**dims,
            "dims": dims,
            "patch": patch,
            "position": in_channels == 6,
        }
    )


def _load_state(network: UNet, state: Mapping[str, Tensor], path: Path) -> None:
    """Load the state dict strictly; report the first differences if that fails."""
    own = network.state_dict()
    missing, unexpected = [k for k in own if k not in state], [k for k in state if k not in own]
    differing = [
        f"{k} is {tuple(state[k].shape)}, not {tuple(own[k].shape)}"
        for k in own
        if k in state and own[k].shape != state[k].shape
    ]
    if missing or unexpected or differing:
        lines = [
            f"  {what}: {', '.join(names[:5])}"
            for what, names in (("missing", missing), ("unexpected", unexpected), ("differing", differing))
            if names
        ]
        raise CheckpointError(
            f"{path}: wrong architecture\n" + "\n".join(lines) + "\n  Check num_channels, channel_mult, num_res_blocks "
            "and attention_resolutions in the parameters file against the weights."
        )
    if odd := next((name for name, tensor in state.items() if tensor.dtype not in FLOATS), None):
        raise CheckpointError(
            f"{path}: {odd} holds {state[odd].dtype}, not floats\n  Save the weights in float16, bfloat16 or wider."
        )
    network.to_empty(device="cpu")
    network.load_state_dict({name: tensor.float() for name, tensor in state.items()}, strict=True)
    if bad := [name for name, tensor in network.state_dict().items() if not tensor.isfinite().all()]:
        raise CheckpointError(
            f"{path}: NaN or infinity in {len(bad)} of {len(state)} tensors, beginning with {bad[0]}\n"
            "  Training diverged, or the file is damaged: use an earlier checkpoint, or fetch it again."
        )
