"""The plots of the quality curves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from foveate.evaluate.intervals import interval

# Okabe and Ito's palette: distinguishable for colour-blind eyes; markers repeat what colour says.
STYLES = {
    "fastv": ("#0072B2", "o", "FastV"),
    "fastv rope=off": ("#56B4E9", "s", "FastV, score without rope"),
    "fastv windowed": ("#009E73", "^", "FastV, 4 x 4 windows"),
    "random": ("#D55E00", "x", "random"),
    "uniform": ("#E69F00", "v", "uniform"),
    "pool": ("#CC79A7", "D", "2 x 2 pooling"),
    "downsampled picture": ("#000000", "*", "downsampled picture, all tokens"),
}


class Study:
    """The raw file, by row name."""

    def __init__(self, report: dict[str, Any]) -> None:
        self.report = report
        self.rows = report["rows"]
        self.right = {row["name"]: np.array([int(c) for c in row["right"]]) for row in self.rows}
        self.tasks = np.array(report["tasks"])
        self.plain = self.right["plain keep 1.0"]
        self.keeps = sorted({row["keep"] for row in self.rows if row["method"] == "fastv"}, reverse=True)
        self.layers = sorted({row["layer"] for row in self.rows if row["method"] == "fastv"})
        self.curve_layers = sorted({row["layer"] for row in self.rows if row["method"] == "uniform"})

    def get(self, method: str, layer: int | None, keep: float) -> npt.NDArray[np.int_] | None:
        """Right answers of a point, None if it was not measured."""
        for row in self.rows:
            if row["method"] == method and row["layer"] == layer and row["keep"] == keep:
                return self.right[row["name"]]
        return None


def differs(first: npt.NDArray[np.int_], second: npt.NDArray[np.int_]) -> bool:
    """Whether the paired 95 % interval leaves zero out."""
    low, high = interval(100.0 * (first - second))
    return low > 0 or high < 0


def _figure(columns: int, width: float, height: float) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot.subplots(1, columns, figsize=(width, height), layout="constrained", squeeze=False)


def plot_curves(study: Study, path: Path) -> None:
    """Accuracy over kept tokens, one panel per layer."""
    figure, axes = _figure(len(study.curve_layers), 5.6 * len(study.curve_layers), 4.6)
    for axis, layer in zip(axes[0], study.curve_layers, strict=True):
        axis.axhline(study.plain.mean(), color="#777777", linestyle="--", linewidth=1, label="plain model")
        for method, (color, marker, label) in STYLES.items():
            own = None if method == "downsampled picture" else layer
            points = [(k, study.get(method, own, k)) for k in study.keeps]
            found = [(k, r.mean(), *interval(r.astype(float))) for k, r in points if r is not None]
            if not found:
                continue
            keep, mean, low, high = (np.array(values) for values in zip(*found, strict=True))
            bars = np.maximum(0, [mean - low, high - mean])
            line = "-" if len(keep) > 3 else "none"
            axis.errorbar(100 * keep, mean, bars, color=color, marker=marker, label=label, capsize=2, linestyle=line)
        axis.set(title=f"before layer {layer} of {study.report['layers']}", xscale="log", xlabel="visual tokens kept (%)")
        axis.set_xticks([100 * k for k in study.keeps], [f"{100 * k:g}" for k in study.keeps])
        axis.minorticks_off()
        axis.grid(alpha=0.25)
    axes[0][0].set_ylabel("exact match, mean over tasks (95 % interval)")
    axes[0][-1].legend(fontsize=8, loc="lower right")
    figure.savefig(path, dpi=110)


def plot_grid(study: Study, path: Path) -> None:
    """FastV over layer and keep, and its difference to random."""
    figure, axes = _figure(2, 11, 4.2)
    fastv = [[study.get("fastv", layer, keep) for keep in study.keeps] for layer in study.layers]
    random = [[study.get("random", layer, keep) for keep in study.keeps] for layer in study.layers]
    mean = np.array([[np.nan if r is None else r.mean() for r in line] for line in fastv])
    gap, clear = np.full(mean.shape, np.nan), np.zeros(mean.shape, dtype=bool)
    for i, j in np.ndindex(mean.shape):
        f, r = fastv[i][j], random[i][j]
        if f is not None and r is not None:
            gap[i, j], clear[i, j] = 100 * (f - r).mean(), differs(f, r)
    bound = float(np.nanmax(np.abs(gap))) or 1.0
    for axis, values, options, title in (
        (axes[0][0], mean, {"cmap": "viridis"}, "FastV: exact match"),
        (axes[0][1], gap, {"cmap": "RdBu", "vmin": -bound, "vmax": bound}, "FastV - random (points)"),
    ):
        image = axis.imshow(values, aspect="auto", **options)
        figure.colorbar(image, ax=axis)
        axis.set(title=title, xlabel="visual tokens kept (%)", ylabel="plan acts before layer")
        axis.set_xticks(range(len(study.keeps)), [f"{100 * keep:g}" for keep in study.keeps])
        axis.set_yticks(range(len(study.layers)), study.layers)
        for i, j in np.ndindex(values.shape):
            text = "" if np.isnan(values[i, j]) else f"{values[i, j]:.2f}" if values is mean else f"{values[i, j]:+.1f}"
            dot = " ·" if values is gap and text and not clear[i, j] else ""
            shade = image.norm(values[i, j]) if text else 1.0
            light = shade < 0.5 if values is mean else abs(shade - 0.5) > 0.36
            axis.text(j, i, text + dot, ha="center", va="center", fontsize=9, color="white" if light else "black")
    figure.savefig(path, dpi=110)


def plot_rows(study: Study, path: Path) -> None:
    """How much of each row of the picture survives."""
    bias = study.report["position_bias"]
    figure, axes = _figure(2, 11, 4.2)
    for axis, rope in zip(axes[0], (True, False), strict=True):
        entries = [entry for entry in bias if entry["rope"] == rope]
        values = np.array([entry["kept_share_of_each_row"] for entry in entries]).T
        top = max(max(entry["kept_share_of_each_row"]) for entry in bias)
        image = axis.imshow(values, aspect="auto", cmap="viridis", vmin=0, vmax=top)
        title = f"score {'with' if rope else 'without'} rope"
        axis.set(title=title, xlabel="plan acts before layer", ylabel="row of the picture (0 = top)")
        axis.set_xticks(range(len(entries)), [entry["layer"] for entry in entries])
    figure.colorbar(image, ax=axes[0].tolist(), label=f"share of the row kept (keep {bias[0]['keep']})")
    figure.savefig(path, dpi=110)
