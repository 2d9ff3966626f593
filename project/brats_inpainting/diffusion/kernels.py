"""Triton kernels for an NVIDIA GPU: group normalisation with SiLU, and sums of features, in channels-last layout.

PyTorch's group normalisation has no channels-last kernel: it copies features to another layout and back. These
kernels read features of any precision twice and write them once; sums are float32, of float64 features float64.

Shapes: N windows, P positions, C channels, G groups of K channels, B blocks of ``ROWS`` positions.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd import Function

ROWS, TILE, CHANNELS = 256, 32, 64  # positions a block, positions and channels that a program holds at once
MERGED = 64  # blocks that are merged at once


def group_norm(
    x_NCV: Tensor, weight_C: Tensor, bias_C: Tensor, shift_NC: Tensor | None, *, groups: int, eps: float, silu: bool
) -> Tensor:
    """Normalise ``x + shift`` by groups of channels (Wu & He 2018, eq. 7), then apply SiLU if asked for.

    Args:
        x_NCV: features, at least one window; those in channels-last layout are not copied.
        weight_C: the factor of each channel.
        bias_C: added to each channel.
        shift_NC: added to the features before they are normalised; N or 1 rows.
        groups: G.
        eps: added to the variance.
        silu: return z · sigmoid(z) instead of z.

    Returns:
        Features of the input's shape and precision, in channels-last layout; differentiable.
    """
    if torch.is_grad_enabled():
        return _GroupNorm.apply(x_NCV, weight_C, bias_C, shift_NC, groups, eps, silu)
    return _normalised(x_NCV, weight_C, bias_C, shift_NC, groups, eps, silu)[0]


def add(h_NCV: Tensor, x_NCV: Tensor, bias_C: Tensor) -> Tensor:
    """Return ``h + x + bias`` in the precision of ``h``, in channels-last layout; differentiable.

    Without gradients, features in that layout are changed in place.
    """
    if torch.is_grad_enabled():
        return _Sum.apply(h_NCV, x_NCV, bias_C)
    return _sum(h_NCV, x_NCV, bias_C, in_place=True)


class _GroupNorm(Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_NCV: Tensor,
        weight_C: Tensor,
        bias_C: Tensor,
        shift_NC: Tensor | None,
        groups: int,
        eps: float,
        silu: bool,  # noqa: FBT001 - apply takes no keywords
    ) -> Tensor:
        y_NCV, x_NVC, *statistics = _normalised(x_NCV, weight_C, bias_C, shift_NC, groups, eps, silu)
        ctx.save_for_backward(x_NVC, weight_C, bias_C, *statistics)
        ctx.groups, ctx.silu, ctx.shifts = groups, silu, 0 if shift_NC is None else len(shift_NC)
        return y_NCV

    @staticmethod
    def backward(ctx: Any, dy_NCV: Tensor) -> tuple[Tensor | None, ...]:
        x_NVC, weight_C, bias_C, mean_NC, gain_NC, offset_NC = ctx.saved_tensors
        dy_NVC = dy_NCV.movedim(1, -1).contiguous()
        n, positions, c = _sizes(x_NVC)
        known = x_NVC, dy_NVC, gain_NC, offset_NC, weight_C, bias_C
        grid, sides = _launch(x_NVC, ctx.silu)
        sums_2NBC = gain_NC.new_empty(2, n, grid[0], c)
        _sums[grid](*known, sums_2NBC[0], sums_2NBC[1], positions, c, **sides)
        dz_NC, dzx_NC = sums_2NBC.sum(2)  # of dL/dz, and of dL/dz · x̂

        def over_group(sums_NC: Tensor) -> Tensor:
            means_NG = (sums_NC * weight_C).unflatten(1, (ctx.groups, -1)).sum(2) / (positions * c // ctx.groups)
            return means_NG.repeat_interleave(c // ctx.groups, 1)

        a_NC, b_NC = over_group(dz_NC), over_group(dzx_NC)
        dx_NVC = torch.empty_like(x_NVC)
        _gradient[grid](*known, a_NC, b_NC, dx_NVC, positions, c, **sides)
        dshift_NC = None
        if ctx.shifts:
            normalised_NC = positions * (mean_NC * gain_NC + offset_NC)  # the sum of x̂
            dshift_NC = gain_NC * (weight_C * dz_NC - positions * a_NC - normalised_NC * b_NC)
            dshift_NC = dshift_NC if ctx.shifts == n else dshift_NC.sum(0, keepdim=True)
        return dx_NVC.movedim(-1, 1), dzx_NC.sum(0), dz_NC.sum(0), dshift_NC, None, None, None


class _Sum(Function):
    @staticmethod
    def forward(ctx: Any, h_NCV: Tensor, x_NCV: Tensor, bias_C: Tensor) -> Tensor:
        ctx.kinds = x_NCV.dtype, bias_C.dtype
        return _sum(h_NCV, x_NCV, bias_C, in_place=False)

    @staticmethod
    def backward(ctx: Any, dy_NCV: Tensor) -> tuple[Tensor, ...]:
        of_x, of_bias = ctx.kinds
        dy_NCV = dy_NCV.movedim(1, -1).contiguous().movedim(-1, 1)  # once for both
        others = [0, *range(2, dy_NCV.ndim)]
        return dy_NCV, dy_NCV.to(of_x), dy_NCV.sum(others, dtype=of_bias)


def _normalised(
    x_NCV: Tensor,
    weight_C: Tensor,
    bias_C: Tensor,
    shift_NC: Tensor | None,
    groups: int,
    eps: float,
    silu: bool,  # noqa: FBT001
) -> tuple[Tensor, ...]:
    """Return the normalised features, the input as N × V × C, and what ``_statistics`` returns."""
    x_NVC = x_NCV.movedim(1, -1).contiguous()
    mean_NC, gain_NC, offset_NC = _statistics(x_NVC, shift_NC, groups, eps)
    y_NVC = torch.empty_like(x_NVC)
    _, positions, c = _sizes(x_NVC)
    grid, sides = _launch(x_NVC, silu)
    _apply[grid](x_NVC, y_NVC, gain_NC, offset_NC, weight_C, bias_C, positions, c, **sides)
    return y_NVC.movedim(-1, 1), x_NVC, mean_NC, gain_NC, offset_NC


def _sum(h_NCV: Tensor, x_NCV: Tensor, bias_C: Tensor, *, in_place: bool) -> Tensor:
    h_NVC, x_NVC = h_NCV.movedim(1, -1).contiguous(), x_NCV.movedim(1, -1).contiguous()
    out_NVC = h_NVC if in_place else torch.empty_like(h_NVC)
    n, positions, c = _sizes(h_NVC)
    rows, block = n * positions, ROWS // 4
    sides = {"ROWS": block, "CHANNELS": CHANNELS, "ACC": _accumulator(h_NVC)}
    _add[triton.cdiv(rows, block), triton.cdiv(c, CHANNELS)](h_NVC, x_NVC, bias_C, out_NVC, rows, c, **sides)
    return out_NVC.movedim(-1, 1)


def _statistics(x_NVC: Tensor, shift_NC: Tensor | None, groups: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mean of each channel, and gain and offset with which x̂ = x · gain + offset: N × C each."""
    n, positions, c = _sizes(x_NVC)
    blocks, kind = triton.cdiv(positions, ROWS), torch.float64 if x_NVC.dtype == torch.float64 else torch.float32
    moments_2NBC = torch.empty(2, n, blocks, c, dtype=kind, device=x_NVC.device)
    found_3NC = torch.empty(3, n, c, dtype=kind, device=x_NVC.device)
    acc = _accumulator(x_NVC)
    _moments[blocks, n, triton.cdiv(c, CHANNELS)](
        *(x_NVC, moments_2NBC[0], moments_2NBC[1], positions, c), ROWS=ROWS, TILE=TILE, CHANNELS=CHANNELS, ACC=acc
    )
    shifts = 0 if shift_NC is None else len(shift_NC)
    _merge[n, groups](
        *(
            moments_2NBC[0],
            moments_2NBC[1],
            shift_NC.contiguous() if shift_NC is not None else found_3NC,
            *found_3NC.unbind(),
        ),
        *(positions, c, blocks, c // groups, eps),
        SHIFTED=shifts > 0,
        STEP=int(shifts > 1),
        ROWS=ROWS,
        MERGED=MERGED,
        CHANNELS=triton.next_power_of_2(c // groups),
        ACC=acc,
    )
    mean_NC, gain_NC, offset_NC = found_3NC.unbind()
    return mean_NC, gain_NC, offset_NC


def _launch(x_NVC: Tensor, silu: bool) -> tuple[tuple[int, int, int], dict[str, Any]]:  # noqa: FBT001
    """Return the grid of the programs, and the constants that they are compiled with."""
    n, positions, c = _sizes(x_NVC)
    sides = {"ROWS": ROWS, "TILE": TILE, "CHANNELS": CHANNELS, "SILU": silu, "ACC": _accumulator(x_NVC)}
    return (triton.cdiv(positions, ROWS), n, triton.cdiv(c, CHANNELS)), sides


def _sizes(x_NVC: Tensor) -> tuple[int, int, int]:
    return len(x_NVC), x_NVC[0, ..., 0].numel(), x_NVC.shape[-1]


def _accumulator(x: Tensor) -> Any:
    return tl.float64 if x.dtype == torch.float64 else tl.float32


@triton.jit
def _moments(
    x, mean, m2, positions, c, ROWS: tl.constexpr, TILE: tl.constexpr, CHANNELS: tl.constexpr, ACC: tl.constexpr
):
    """Mean of each channel over a block of positions, and the sum of squared distances from it.

    The sums are taken relative to the block's first position, so that a large mean costs no precision.
    """
    block, n, channels = tl.program_id(0), tl.program_id(1), tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    inside, first = channels < c, block * ROWS
    x += n.to(tl.int64) * positions * c
    origin = tl.load(x + first * c + channels, mask=inside, other=0).to(ACC)
    total, squares = tl.zeros((TILE, CHANNELS), ACC), tl.zeros((TILE, CHANNELS), ACC)
    for start in range(0, ROWS, TILE):
        rows = first + start + tl.arange(0, TILE)
        there = (rows < positions)[:, None] & inside[None, :]
        values = tl.load(x + rows[:, None] * c + channels[None, :], mask=there, other=0).to(ACC)
        distance = tl.where(there, values - origin[None, :], 0)
        total += distance
        squares += distance * distance
    count = tl.minimum(ROWS, positions - first).to(ACC)
    sums = tl.sum(total, 0)
    place = (n * tl.num_programs(0) + block) * c + channels
    tl.store(mean + place, origin + sums / count, mask=inside)
    tl.store(m2 + place, tl.sum(squares, 0) - sums * sums / count, mask=inside)


@triton.jit
def _merge(
    mean,
    m2,
    shift,
    mean_out,
    gain_out,
    offset_out,
    positions,
    c,
    blocks,
    k,
    eps,
    SHIFTED: tl.constexpr,
    STEP: tl.constexpr,
    ROWS: tl.constexpr,
    MERGED: tl.constexpr,
    CHANNELS: tl.constexpr,
    ACC: tl.constexpr,
):
    """Merge the blocks of one group (Chan et al. 1979): the mean of its channels, and the group's gain and offset."""
    n, group, lane = tl.program_id(0), tl.program_id(1), tl.arange(0, CHANNELS)
    channels, inside = group * k + lane, lane < k
    total, squares = tl.zeros((CHANNELS,), ACC), tl.zeros((CHANNELS,), ACC)
    for start in range(0, blocks, MERGED):
        block = start + tl.arange(0, MERGED)
        there = (block < blocks)[:, None] & inside[None, :]
        count = tl.minimum(ROWS, positions - block * ROWS).to(ACC)
        means = tl.load(mean + (n * blocks + block)[:, None] * c + channels[None, :], mask=there, other=0)
        total += tl.sum(means * count[:, None], 0)
    averages = total / positions
    moved = averages
    if SHIFTED:
        moved += tl.load(shift + STEP * n * c + channels, mask=inside, other=0).to(ACC)
    centre = tl.sum(tl.where(inside, moved, 0)) / k
    for start in range(0, blocks, MERGED):
        block = start + tl.arange(0, MERGED)
        there = (block < blocks)[:, None] & inside[None, :]
        count = tl.minimum(ROWS, positions - block * ROWS).to(ACC)
        place = (n * blocks + block)[:, None] * c + channels[None, :]
        means, within = tl.load(mean + place, mask=there, other=0), tl.load(m2 + place, mask=there, other=0)
        distance = means - averages[None, :] + (moved - centre)[None, :]
        squares += tl.sum(tl.where(there, within + count[:, None] * distance * distance, 0), 0)
    gain = 1 / tl.sqrt(tl.sum(squares) / (positions * k) + eps)
    place = n * c + channels
    tl.store(mean_out + place, averages, mask=inside)
    tl.store(gain_out + place, tl.zeros((CHANNELS,), ACC) + gain, mask=inside)
    tl.store(offset_out + place, (moved - averages - centre) * gain, mask=inside)


@triton.jit
def _apply(
    x,
    y,
    gain,
    offset,
    weight,
    bias,
    positions,
    c,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    CHANNELS: tl.constexpr,
    SILU: tl.constexpr,
    ACC: tl.constexpr,
):
    """Write the normalised features of a block."""
    block, n, channels = tl.program_id(0), tl.program_id(1), tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    inside = channels < c
    w = tl.load(weight + channels, mask=inside, other=0).to(ACC)
    scale = tl.load(gain + n * c + channels, mask=inside, other=0) * w
    shift = tl.load(offset + n * c + channels, mask=inside, other=0) * w
    shift += tl.load(bias + channels, mask=inside, other=0).to(ACC)
    start_of_window = n.to(tl.int64) * positions * c
    for start in range(0, ROWS, TILE):
        rows = block * ROWS + start + tl.arange(0, TILE)
        there = (rows < positions)[:, None] & inside[None, :]
        place = start_of_window + rows[:, None] * c + channels[None, :]
        z = tl.load(x + place, mask=there, other=0).to(ACC) * scale[None, :] + shift[None, :]
        if SILU:
            z = z / (1 + tl.exp(-z))
        tl.store(y + place, z.to(y.dtype.element_ty), mask=there)


@triton.jit
def _of_channels(values, place, inside, ACC: tl.constexpr):
    """One value for each channel, as a row."""
    return tl.load(values + place, mask=inside, other=0).to(ACC)[None, :]


@triton.jit
def _recomputed(x, dy, place, there, gain, offset, weight, bias, SILU: tl.constexpr, ACC: tl.constexpr):
    """The normalised features x̂ at some places, and dL/dz from dL/dy."""
    normalised = tl.load(x + place, mask=there, other=0).to(ACC) * gain + offset
    dz = tl.load(dy + place, mask=there, other=0).to(ACC)
    if SILU:
        z = normalised * weight + bias
        s = 1 / (1 + tl.exp(-z))
        dz = dz * s * (1 + z * (1 - s))
    return normalised, dz


@triton.jit
def _sums(
    x,
    dy,
    gain,
    offset,
    weight,
    bias,
    dz_out,
    dzx_out,
    positions,
    c,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    CHANNELS: tl.constexpr,
    SILU: tl.constexpr,
    ACC: tl.constexpr,
):
    """Sums over a block of dL/dz and of dL/dz · x̂, by channel."""
    block, n, channels = tl.program_id(0), tl.program_id(1), tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    inside = channels < c
    w = _of_channels(weight, channels, inside, ACC)
    b = _of_channels(bias, channels, inside, ACC)
    g = _of_channels(gain, n * c + channels, inside, ACC)
    o = _of_channels(offset, n * c + channels, inside, ACC)
    start_of_window = n.to(tl.int64) * positions * c
    dzs, dzxs = tl.zeros((TILE, CHANNELS), ACC), tl.zeros((TILE, CHANNELS), ACC)
    for start in range(0, ROWS, TILE):
        rows = block * ROWS + start + tl.arange(0, TILE)
        there = (rows < positions)[:, None] & inside[None, :]
        place = start_of_window + rows[:, None] * c + channels[None, :]
        normalised, dz = _recomputed(x, dy, place, there, g, o, w, b, SILU, ACC)
        dzs += dz
        dzxs += dz * normalised
    place = (n * tl.num_programs(0) + block) * c + channels
    tl.store(dz_out + place, tl.sum(dzs, 0), mask=inside)
    tl.store(dzx_out + place, tl.sum(dzxs, 0), mask=inside)


@triton.jit
def _gradient(
    x,
    dy,
    gain,
    offset,
    weight,
    bias,
    mean_dz,
    mean_dzx,
    dx,
    positions,
    c,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    CHANNELS: tl.constexpr,
    SILU: tl.constexpr,
    ACC: tl.constexpr,
):
    """Write dL/dx of a block; the means over the group are of w · dL/dz, and of w · dL/dz · x̂."""
    block, n, channels = tl.program_id(0), tl.program_id(1), tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    inside = channels < c
    w = _of_channels(weight, channels, inside, ACC)
    b = _of_channels(bias, channels, inside, ACC)
    g = _of_channels(gain, n * c + channels, inside, ACC)
    o = _of_channels(offset, n * c + channels, inside, ACC)
    m = _of_channels(mean_dz, n * c + channels, inside, ACC)
    mx = _of_channels(mean_dzx, n * c + channels, inside, ACC)
    start_of_window = n.to(tl.int64) * positions * c
    for start in range(0, ROWS, TILE):
        rows = block * ROWS + start + tl.arange(0, TILE)
        there = (rows < positions)[:, None] & inside[None, :]
        place = start_of_window + rows[:, None] * c + channels[None, :]
        normalised, dz = _recomputed(x, dy, place, there, g, o, w, b, SILU, ACC)
        tl.store(dx + place, (g * (w * dz - m - normalised * mx)).to(dx.dtype.element_ty), mask=there)


@triton.jit
def _add(h, x, bias, out, rows, c, ROWS: tl.constexpr, CHANNELS: tl.constexpr, ACC: tl.constexpr):
    """Write h + x + bias."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channels = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    there = (row < rows)[:, None] & (channels < c)[None, :]
    place = row.to(tl.int64)[:, None] * c + channels[None, :]
    total = tl.load(h + place, mask=there, other=0).to(ACC) + tl.load(x + place, mask=there, other=0).to(ACC)
    total += tl.load(bias + channels, mask=channels < c, other=0).to(ACC)[None, :]
    tl.store(out + place, total.to(out.dtype.element_ty), mask=there)
