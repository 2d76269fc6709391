"""Markdown and a plot from raw files of the prefill and decode benchmarks.

    python -m benchmarks.table benchmarks/results/*-prefill-*.json benchmarks/results/*-decode-*.json \\
        --out docs/speed.md --plot docs/pictures/prefill.png

Every run that is given gets rows of its own: nothing is averaged over runs, and no run is left out. Cells of the usual grid
without data say "not measured".
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import _models as models
from benchmarks._results import load
from benchmarks._run import PLAIN, Benchmark
from benchmarks._statistics import realised
from benchmarks.decode import Decode
from benchmarks.prefill import Prefill

NOTHING = "not measured"
BENCHMARKS: dict[str, type[Benchmark]] = {"prefill": Prefill, "decode": Decode}
DEVICES = {"cpu": ("CPU", models.CPU_MODELS, (1,)), "cuda": ("GPU", models.GPU_MODELS, (1, 8))}
Key = tuple[str, int, int]  # model, visual tokens as asked for, batch
_COLUMNS = {
    "prefill": (
        "run", "batch", "visual tokens", "plan", "TTFT ms [quartiles]", "encoder", "choosing", "LLM prefill ratio [95 %]",
        "theory", "realised", "theory, causal", "TTFT ratio [95 %]", "theory", "realised", "CPU time ratio", "KV cache",
        "peak memory",
    ),
    "decode": (
        "run", "batch", "visual tokens", "plan", "TPOT ms [quartiles]", "TPOT ratio [95 %]", "theory (bytes)", "realised",
        "CPU time ratio", "theory (FLOPs)", "new tokens", "KV cache", "of plain", "peak memory",
    ),
}  # fmt: skip


def document(runs: Sequence[dict[str, Any]], plot: str | None = None) -> str:
    """The whole page: the runs, then a table for each benchmark, device and model."""
    parts = ["# Speed, measured", _INTRODUCTION, "## Runs", run_table(runs)]
    for name in BENCHMARKS:
        parts.append(f"## {'Time to first token' if name == 'prefill' else 'Time per output token'}")
        if plot is not None and name == "prefill":
            parts.append(f"![Measured ratio of LLM prefill beside theory, over visual tokens]({plot})")
        for device in DEVICES:
            mine = [run for run in runs if run["benchmark"] == name and run["device"] == device]
            for model in _models_of(device, mine):
                parts += [f"### {DEVICES[device][0]}, {model}", model_table(name, device, model, mine)]
    return "\n\n".join(parts) + "\n"


_INTRODUCTION = (
    "Made by `python -m benchmarks.table` from raw files in `benchmarks/results/`, which hold every single time. Random "
    "weights: speed does not depend on what they say. A ratio is the time under a plan over the plain model's of the same "
    "round (same attention kernel, KV cache), median over rounds, with a paired 95 % bootstrap over rounds. Theory is "
    "`foveate.estimate`, which counts the whole square of attention; *causal* counts the half that a causal kernel computes. "
    "*Realised* is (1 - measured) / (1 - theory). LLM prefill contains choosing. Times of different runs do not compare."
)


def run_table(runs: Sequence[dict[str, Any]]) -> str:
    """One row for each raw file."""
    rows = [("run", "what", "machine", "threads", "dtype, attention", "versions", "rounds", "remarks")]
    for run in runs:
        machine, version = run["machine"], run["versions"]
        load = machine.get("load_average_before")
        remarks = [] if load is None else [f"load average before: {load[0]:.1f}"]
        remarks += ["smoke run: the numbers mean nothing"] if run["smoke"] else []
        remarks += [] if run["complete"] else ["interrupted"]
        remarks += [
            f"{skip['model']}, {skip['asked_tokens']:,}, batch {skip['batch']}: {skip['reason']}" for skip in run["skipped"]
        ]
        rounds = sorted({cell["rounds"] for cell in run["cells"]})
        rows.append((
            run["file"], run["benchmark"], machine.get("gpu", machine["cpu"]), str(machine["threads"]),
            f"{run['dtype']}, {run['attention']}", f"torch {version['torch']}, transformers {version['transformers']}",
            "-".join(str(number) for number in dict.fromkeys([*rounds[:1], *rounds[-1:]])) or "none", "; ".join(remarks),
        ))  # fmt: skip
    return _markdown(rows) if len(rows) > 1 else NOTHING


def model_table(name: str, device: str, model: str, runs: Sequence[dict[str, Any]]) -> str:
    """Rows of every run, cell and plan of one model; usual cells without data are named."""
    lines: list[Sequence[str]] = [_COLUMNS[name]]
    for key in _keys(name, device, model, runs):
        before = len(lines)
        for run in runs:
            for cell in run["cells"]:
                if (cell["model"], cell["asked_tokens"], cell["batch"]) == key:
                    lines += [_row(name, run, cell, row) for row in cell["rows"]]
        if len(lines) == before:
            reasons = {
                skip["reason"]
                for run in runs
                for skip in run["skipped"]
                if (skip["model"], skip["asked_tokens"], skip["batch"]) == key
            }
            told = f"{NOTHING}: {'; '.join(sorted(reasons))}" if reasons else NOTHING
            lines.append(("", str(key[2]), f"{key[1]:,}", told, *[""] * (len(lines[0]) - 4)))
    return _markdown(lines)


def _models_of(device: str, runs: Sequence[dict[str, Any]]) -> list[str]:
    measured = [entry["model"] for run in runs for entry in (*run["cells"], *run["skipped"])]
    return list(dict.fromkeys([*DEVICES[device][1], *measured]))


def _keys(name: str, device: str, model: str, runs: Sequence[dict[str, Any]]) -> list[Key]:
    """Cells of the usual grid and all others that the runs have."""
    usual = BENCHMARKS[name].tokens[device] if model in DEVICES[device][1] else ()
    keys = {(model, tokens, batch) for tokens in usual for batch in DEVICES[device][2]}
    found = [entry for run in runs for entry in (*run["cells"], *run["skipped"]) if entry["model"] == model]
    return sorted(keys | {(model, entry["asked_tokens"], entry["batch"]) for entry in found})


def _row(name: str, run: dict[str, Any], cell: dict[str, Any], row: dict[str, Any]) -> tuple[str, ...]:
    plain = row["plan"] == PLAIN
    summary, theory = row["summary"], row["theory"]
    time = summary["ttft" if name == "prefill" else "tpot"]
    first = f"{time['median_ms']:,.1f} [{time['quartiles_ms'][0]:,.1f}, {time['quartiles_ms'][1]:,.1f}]"
    start = (run["file"].removesuffix(".json"), str(cell["batch"]), f"{cell['visual_tokens']:,}", f"`{row['plan']}`", first)
    memory = NOTHING if row["peak_bytes"] is None else _mebibytes(row["peak_bytes"])
    kv = _cache(row)
    cpu = "" if plain else NOTHING if "cpu_ratio" not in time else _percent(time["cpu_ratio"])
    if name == "prefill":
        shares = [_percent(summary[part]["median_ms"] / time["median_ms"]) for part in ("encoder", "choosing")]
        llm = [*_ratios(summary["llm"], theory.get("llm")), _percent(theory.get("llm_causal"))]
        ratios = [""] * 8 if plain else [*llm, *_ratios(time, theory.get("ttft")), cpu]
        return (*start, *shares, *ratios, kv, memory)
    ratios = [""] * 5 if plain else [*_ratios(time, theory.get("tpot")), cpu, _percent(theory.get("tpot_flops"))]
    stored, lasting = cell["rows"][0]["kv_bytes"], _lasting(row)
    share = "" if plain or not stored or lasting is None else _percent(lasting / stored)
    return (*start, *ratios, str(cell.get("new_tokens", run["new_tokens"])), kv, share, memory)


def _lasting(row: dict[str, Any]) -> float | None:
    """Bytes in the cache without slots that a gate rejected; raw files from before gates have no such slots."""
    value: float | None = row.get("kv_bytes_lasting", row["kv_bytes"])
    return value


def _cache(row: dict[str, Any]) -> str:
    """What lasts, and what is held until rejected slots are taken away where that is more."""
    lasting, held = _lasting(row), row["kv_bytes"]
    if lasting is None:
        return NOTHING
    return _mebibytes(lasting) + ("" if held == lasting else f" ({_mebibytes(held)} held)")


def _ratios(time: dict[str, Any], theory: float | None) -> list[str]:
    if "ratio" not in time:
        return [NOTHING, _percent(theory), NOTHING]
    low, high = time["ratio_95"]
    share = realised(time["ratio"], theory)
    return [
        f"{_percent(time['ratio'])} [{100 * low:.1f}, {100 * high:.1f}]",
        _percent(theory),
        "" if share is None else f"{share:.2f}",
    ]


def _percent(value: float | None) -> str:
    return "not counted" if value is None else f"{100 * value:.1f} %"


def _mebibytes(value: float) -> str:
    return f"{value / 2**20:,.1f} MiB"


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    # A vertical line in a plan or a reason would end its cell.
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def plot(runs: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw LLM prefill ratios with their intervals beside theory over visual tokens: a panel for each model, batch and machine.

    Raises:
        ValueError: without a prefill run.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = list(_panels(runs))
    if not panels:
        raise ValueError("nothing to plot: no prefill run has a measured cell")
    across = min(2, len(panels))
    down = -(-len(panels) // across)
    figure = Figure(figsize=(6 * across, 4.2 * down), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(down, across, squeeze=False).flatten()
    for axis, (title, cells) in zip(axes, panels, strict=False):
        _draw(axis, title, cells)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _panels(runs: Sequence[dict[str, Any]]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Cells of equal model, batch, machine and number format; ratios of several runs stand beside each other."""
    panels: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        if run["benchmark"] == "prefill":
            where = run["machine"].get("gpu", run["device"].upper())
            for cell in run["cells"]:
                title = f"{cell['model']}, batch {cell['batch']}\n{where}, {run['dtype']}, {run['attention']}"
                panels.setdefault(title, []).append(cell)
    yield from sorted(panels.items())


def _draw(axis: Any, title: str, cells: list[dict[str, Any]]) -> None:
    cells = sorted(cells, key=lambda cell: cell["visual_tokens"])
    plans = dict.fromkeys(row["plan"] for cell in cells for row in cell["rows"] if row["plan"] != PLAIN)
    for number, plan in enumerate(plans):
        points = [
            (cell["visual_tokens"], row)
            for cell in cells
            for row in cell["rows"]
            if row["plan"] == plan and "ratio" in row["summary"]["llm"]
        ]
        # Another run of the same cell stands a little to the right, so that intervals do not hide each other.
        seen = [place for place, _ in points]
        tokens = [place * 1.04 ** seen[:number_of].count(place) for number_of, place in enumerate(seen)]
        ratios = [row["summary"]["llm"]["ratio"] for _, row in points]
        ends = [row["summary"]["llm"]["ratio_95"] for _, row in points]
        bars = [
            [max(0, r - low) for r, (low, _) in zip(ratios, ends, strict=True)],
            [max(0, high - r) for r, (_, high) in zip(ratios, ends, strict=True)],
        ]
        axis.errorbar(tokens, ratios, yerr=bars, fmt="o", markersize=4, capsize=4, color=f"C{number}", label=plan)
        known = [(place, row["theory"]["llm"]) for place, row in points if "llm" in row["theory"]]
        axis.plot([place for place, _ in known], [value for _, value in known], color=f"C{number}", linestyle="--")
    axis.axhline(1.0, color="0.6", linewidth=1)
    axis.set(title=title, xlabel="visual tokens", ylabel="LLM prefill time, plan / plain", xscale="log", ylim=(0, None))
    places = sorted({cell["visual_tokens"] for cell in cells})
    axis.set_xticks(places, [f"{place:,}" for place in places], minor=False)
    axis.minorticks_off()
    axis.title.set_fontsize(9)
    axis.plot([], [], color="0.3", linestyle="--", label="theory")
    axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help="raw files; without any, everything says not measured")
    parser.add_argument("--out", type=Path, help="Markdown file; printed if left out")
    parser.add_argument("--plot", type=Path, help="PNG of the prefill runs")
    options = parser.parse_args(arguments)
    try:
        runs = [load(path, tuple(BENCHMARKS)) for path in sorted(options.files)]
        if options.plot:
            plot(runs, options.plot)
    except ValueError as error:
        parser.error(str(error))
    except ImportError:
        parser.error("--plot needs matplotlib: pip install matplotlib")
    shown = None
    if options.plot:
        folder = options.out.parent if options.out else Path()
        inside = options.plot.resolve().is_relative_to(folder.resolve())
        shown = str(options.plot.resolve().relative_to(folder.resolve()) if inside else options.plot)
    text = document(runs, shown)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text, encoding="utf-8")
    else:
        print(text, end="")


if __name__ == "__main__":
    main(sys.argv[1:])
