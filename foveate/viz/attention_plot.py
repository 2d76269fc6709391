"""Plots of an attention study: how attention is divided, and heat maps over the picture. matplotlib, no display needed."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from torch import Tensor

from foveate.core.attention import KINDS, AttentionStudy, Raters
from foveate.core.layout import Medium, Role
from foveate.viz.packages import require
from foveate.viz.parts import Part

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KIND_NAMES = {Role.SYSTEM: "system", Role.VISUAL: "visual", Role.INSTRUCT: "instruction", Role.OUTPUT: "output"}
RATER_NAMES = {Raters.OUTPUT: "the answer's tokens (mean)", Raters.INSTRUCTION: "the prompt's last token"}
# Okabe and Ito's palette, told apart by colour-blind eyes; hatches and markers tell the kinds apart without colour.
_LOOKS = {
    Role.SYSTEM: ("#0072B2", "//", "s"),
    Role.VISUAL: ("#E69F00", "", "o"),
    Role.INSTRUCT: ("#009E73", "..", "^"),
    Role.OUTPUT: ("#CC79A7", "xx", "D"),
}
_COLOURS = "inferno"  # brightness alone orders it, so grey prints and colour-blind eyes read it alike
_OVERLAY = 0.72
# Brightness of the picture under the heat, from its black to its white: too narrow to be taken for attention.
_DIM = (0.22, 0.52)
_DPI = 120
# Leading digits of labels on a logarithmic axis.
_STEPS = ((1,), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8))
# Inches: of a panel's height, and of the figure's width, below which its title would not fit.
_HIGHEST, _NARROWEST = 6.0, 6.5
# Values below this share of the largest are shown as that share.
_SPAN = 1e-4


def scale_of(study: AttentionStudy, raters: Raters, row: int) -> tuple[float, float]:
    """Bounds of one logarithmic scale for all layers and pictures of a row: (smallest, largest) attention of a token.

    Zeros, of tokens outside a sliding window, lie outside.
    """
    values = [study.received(raters, medium).flatten() for medium in study.layout.media if medium.row == row]
    flat = np.concatenate([value.numpy() for value in values]) if values else np.zeros(0)
    flat = flat[flat > 0]
    if not len(flat):
        return 1e-6, 1.0
    top = float(flat.max())
    bottom = max(float(np.quantile(flat, 0.01)), top * _SPAN)
    return (bottom, top) if bottom < top else (top / 10, top)


def layer_name(study: AttentionStudy, number: int) -> str:
    """ "layer 3", with its sliding window if it has one."""
    window = study.windows[number]
    return f"layer {study.layers[number]}" + ("" if window is None else f" (window {window})")


def allocation_plot(study: AttentionStudy, title: str, row: int = 0) -> bytes:
    """PNG: for each kind of rater the shares of attention by layer, and attention per token."""
    require("matplotlib")
    from matplotlib.figure import Figure

    raters = [kind for kind in Raters if kind is Raters.INSTRUCTION or study.has_answer(row)]
    wide = max(5.0, 0.26 * len(study.layers) + 1.5)
    figure = Figure(figsize=(2 * wide, 3.4 * len(raters) + 1.1), layout="constrained")
    figure.suptitle(_short(f"Where attention goes: {title}", int(2 * wide * 9)), fontsize=12)
    axes = figure.subplots(len(raters), 2, squeeze=False)
    counts = study.token_counts()[row].tolist()
    for kind, (left, right) in zip(raters, axes, strict=True):
        seen = [number for number, count in enumerate(counts) if count and (kind is Raters.OUTPUT or number < 3)]
        _draw_shares(left, study, study.shares(kind)[:, row], seen)
        left.set_title(f"attention of {RATER_NAMES[kind]}", fontsize=10)
        _draw_efficiency(right, study, study.efficiency(kind)[:, row], seen)
        right.set_title("the same per token of that kind", fontsize=10)
    handles = _legend(counts)
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=9, frameon=False)
    return _png(figure)


def _ticks(axis: Any, study: AttentionStudy) -> None:
    step = math.ceil(len(study.layers) / 16)
    places = range(0, len(study.layers), step)
    axis.set_xticks(list(places), [str(study.layers[place]) for place in places])
    axis.set_xlabel("decoder layer")
    axis.set_xlim(-0.6, len(study.layers) - 0.4)


def _draw_shares(axis: Any, study: AttentionStudy, shares: Tensor, seen: Sequence[int]) -> None:
    bottom, at = np.zeros(len(study.layers)), np.arange(len(study.layers))
    for number in seen:
        colour, hatch, _ = _LOOKS[KINDS[number]]
        height = 100 * shares[:, number].numpy()
        axis.bar(at, height, 0.86, bottom=bottom, color=colour, hatch=hatch, edgecolor="white", linewidth=0.4)
        bottom = bottom + height
    axis.set_ylabel("share of attention (%)")
    axis.set_ylim(0, 100)
    _ticks(axis, study)


def _draw_efficiency(axis: Any, study: AttentionStudy, efficiency: Tensor, seen: Sequence[int]) -> None:
    at = np.arange(len(study.layers))
    for number in seen:
        colour, _, marker = _LOOKS[KINDS[number]]
        values = 100 * efficiency[:, number].numpy()
        axis.plot(at, np.where(values > 0, values, np.nan), color=colour, marker=marker, markersize=5, linewidth=1.6)
    axis.set_yscale("log")
    axis.set_yticks(*_decimals(*axis.get_ylim()))
    axis.minorticks_off()
    axis.set_ylabel("attention per token (%)")
    axis.grid(axis="y", color="0.88")
    axis.set_axisbelow(True)
    _ticks(axis, study)


def _legend(counts: Sequence[int]) -> list[Any]:
    from matplotlib.patches import Patch

    handles = []
    for kind, count in zip(KINDS, counts, strict=True):
        if count:
            colour, hatch, _ = _LOOKS[kind]
            name = f"{KIND_NAMES[kind]}: {count} token" + ("s" if count != 1 else "")
            handles.append(Patch(facecolor=colour, hatch=hatch, edgecolor="white", label=name))
    return handles


def heat_map(study: AttentionStudy, raters: Raters, medium: Medium, part: Part, subtitle: str) -> bytes:
    """PNG: one panel for each layer with the attention that each visual token of a part receives.

    Colours mean the same in all layers and pictures of the medium's row.
    """
    require("matplotlib")
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    first = int(part.picture is not None)  # the picture itself comes first
    count = first + len(study.layers)
    widest = next(width for most, width in ((12, 4), (24, 6), (count, 8)) if count <= most)
    down = math.ceil(count / widest)
    across = math.ceil(count / down)
    side = min(2.3 if across > 4 else 2.7, _HIGHEST / part.aspect)
    figure = Figure(
        figsize=(max(_NARROWEST, across * (side + 0.1)), down * (part.aspect * side + 0.34) + 1.4), layout="constrained"
    )
    room = int(figure.get_figwidth() * 11)
    figure.suptitle(f"{_short(part.title, room)}\n{_short(subtitle, room)}", fontsize=11)
    axes = figure.subplots(down, across, squeeze=False).flatten()
    bottom, top = scale_of(study, raters, medium.row)
    norm = LogNorm(100 * bottom, 100 * top, clip=True)
    values = 100 * study.received(raters, medium)[:, part.start : part.stop].numpy()
    drawn: Any = None
    for number, axis in enumerate(axes, start=-first):
        axis.set_axis_off()
        if number < 0:
            axis.imshow(np.asarray(part.picture))
            axis.set_title("what the model sees", fontsize=10, pad=3)
        elif number < len(study.layers):
            drawn = _draw_heat(axis, part, values[number], norm)
            axis.set_title(layer_name(study, number), fontsize=10, pad=3)
    bar = figure.colorbar(drawn, ax=list(axes), location="bottom", aspect=45, shrink=0.8, pad=0.02)
    hidden = "; no colour: outside the layer's window" if any(window is not None for window in study.windows) else ""
    label = f"attention of {RATER_NAMES[raters]} to one visual token (% of all it pays, mean of heads{hidden})"
    bar.set_label(label, fontsize=9)
    bar.ax.set_facecolor(str(sum(_DIM) / 2))
    places, labels = _decimals(100 * bottom, 100 * top)
    bar.set_ticks(places, labels=labels)
    bar.minorticks_off()
    return _png(figure)


def _decimals(bottom: float, top: float) -> tuple[list[float], list[str]]:
    """Places and labels on a logarithmic axis: round numbers, as coarse as still gives four of them."""
    powers = range(math.floor(math.log10(bottom)), math.ceil(math.log10(top)) + 1)
    for steps in _STEPS:
        places = [step * 10.0**power for power in powers for step in steps if bottom <= step * 10.0**power <= top]
        if len(places) >= 4:
            break
    else:
        places = np.linspace(bottom, top, 4).tolist()
    return places, [np.format_float_positional(place, precision=3, fractional=False, trim="-") for place in places]


def _draw_heat(axis: Any, part: Part, values: Any, norm: Any) -> Any:
    extent = (0, part.columns, part.rows, 0)
    if part.picture is not None:
        shown = part.picture.convert("L")
        shown.thumbnail((480, 480), Image.Resampling.LANCZOS)
        dark, bright = _DIM
        axis.imshow(dark + np.asarray(shown) / 255 * (bright - dark), cmap="gray", vmin=0, vmax=1, extent=extent)
    seen = np.ma.masked_less_equal(values.reshape(part.rows, part.columns), 0)
    drawn = axis.imshow(seen, cmap=_COLOURS, norm=norm, alpha=_OVERLAY, extent=extent, interpolation="nearest")
    axis.set_aspect(part.aspect * part.columns / part.rows)
    return drawn


def _short(text: str, most: int) -> str:
    """One line of at most so many characters; a dollar sign is no formula."""
    line = " ".join(text.split()).replace("$", r"\$")
    return line if len(line) <= most else line[: most - 1] + "…"


def _png(figure: Figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=_DPI, facecolor="white")
    return out.getvalue()
