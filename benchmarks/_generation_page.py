"""The page of the study of long answers, from one raw file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from foveate.cli.tables import human_bytes, human_flops
from foveate.evaluate.intervals import Mean, difference, mean_of

SCORES = {"meteor": "METEOR", "rouge_l": "ROUGE-L"}
NOTHING = "not measured"
# Which control is fair to which learned plan: as many visual tokens, as much of the answer.
PAIRS = {
    "learned image": ("fastv image", "random image", "uniform image"),
    "learned answer": ("random gate, as much", "stride gate, as much"),
    "both learned": ("fastv image + random gate, as much",),
}
# Okabe and Ito's palette; markers repeat what colour says.
STYLES = {
    "plain": ("#000000", "*"), "learned image": ("#0072B2", "o"), "learned answer": ("#0072B2", "^"),
    "both learned": ("#0072B2", "D"), "fastv image": ("#D55E00", "o"), "random image": ("#E69F00", "o"),
    "uniform image": ("#CC79A7", "o"), "random gate": ("#E69F00", "v"), "stride gate": ("#CC79A7", "v"),
    "random gate, as much": ("#E69F00", "^"), "stride gate, as much": ("#CC79A7", "^"),
    "fastv image + random gate": ("#D55E00", "d"), "fastv image + random gate, as much": ("#D55E00", "D"),
}  # fmt: skip

PAGE = """# Long answers, measured

Made by `python -m benchmarks.generation`; raw file with the numbers of every sample: `{raw}`. What a plan costs and saves
when answers are long, on the demo model, as Dynamic-LLaVA's Table 3 measures it (arXiv 2412.00876). Plans choose before decoder
layer {layer}: a share of {keep} of the picture, or what of the answer the later layers store. *Learned* are the trained
predictors of Dynamic-LLaVA ({trained}); *as much*: controls that store the share of the answer that the learned gate stores
({share:.1%} of a caption). Random draws one of {seeds} seeds per sample. Perplexities are close to 1 because the demo's
captions follow a grammar: compare plans, not values with those of other models.

## Captions

{count:,} held-out captions, {tokens:.0f} tokens on average.

{table}

- **PPL**: of the true caption and its end token, read by teacher forcing through the KV cache; mean over samples of exp(mean
  loss). Changes are plan - plain [paired 95 % bootstrap over samples].
- **{overlaps}**: of the caption that the model writes itself under the plan, greedily, with the true one.{missing}
- **Output tokens**: read, and computed by the layers after the gate in a last pass without a cache (the stored ones and the
  newest).
- **KV cache**: keys and values of prompt and true caption, read off the cache after the last token, float32, without slots
  that a gate rejected and that wait to be taken away; then those of the caption alone. In brackets the share of the plain
  model's.
- **FLOPs without a cache**: of decoder and LM head in one pass over prompt and caption, and of the paper's Eq. 13 over the
  caption's tokens alone, in brackets the share of the plain model's; the predictors' own are not in them.

![Perplexity and {against} against the KV cache](pictures/generation-captions.png)

Bars: 95 % intervals of the means, over samples. Against controls that keep as much, paired:

{verdict}

## Other long tasks

{others} of each task. Perplexity, and in brackets {overlap} of the generated answers. For `follow_up` the perplexity is the
mean over its two rounds, the second read after the true first one on its gated cache; the generated answer is that of the
second, asked with the first round in the prompt, which no gate judges. Bold: the paired interval against plain leaves zero out.

{tasks}
"""


def write_page(report: dict[str, Any], raw: Path, out: Path) -> None:
    """Write the page and its plot."""
    tasks = list(report["samples"])
    caption, plans = tasks[0], {row["name"]: row["plan"] for row in report["rows"] if row["task"] == tasks[0]}
    rows = {(row["task"], row["name"]): row["scores"] for row in report["rows"]}
    rows = {key: _with_names(scores, report) for key, scores in rows.items()}
    own = {name: rows[caption, name] for name in plans}
    measured = [key for key in SCORES if key in own["plain"]]
    overlap = measured[0]  # the paper's, where there is one
    learned = own.get("learned answer")
    share = 1.0 if learned is None else (sum(learned["computed"]) - len(learned["read"])) / (
        sum(learned["read"]) - len(learned["read"])
    )  # fmt: skip
    pictures = out.parent / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    plot(own, measured, pictures / "generation-captions.png")
    text = PAGE.format(
        raw=raw.as_posix(), layer=report["layer"], keep=f"{report['keep']:.0%}", trained=_trained(report["provenance"]),
        share=share, seeds=report["random_seeds"], count=report["samples"][caption], overlap=SCORES[overlap],
        tokens=_mean(own["plain"]["read"]), table=_table(own, plans), verdict=_verdict(own, measured),
        overlaps=" and ".join(SCORES.values()), against=" and ".join(SCORES[key] for key in measured),
        missing="".join(f" {SCORES[key]} was not measured: {_NEEDS[key]}." for key in SCORES if key not in measured),
        others=" and ".join(sorted({str(report["samples"][task]) for task in tasks[1:]})),
        tasks=_tasks(rows, tasks[1:], list(plans), overlap),
    )  # fmt: skip
    out.write_text(text, encoding="utf-8")


# Why a score may be missing.
_NEEDS = {"meteor": "nltk had no punkt_tab and wordnet where the study ran", "rouge_l": "the study is older than its column"}


def _with_names(scores: dict[str, Any], report: dict[str, Any]) -> dict[str, Any]:
    """Scores by their own names; earlier studies have one score of answers, called overlap."""
    name = report.get("overlap_score")
    return scores if name is None else {name if key == "overlap" else key: values for key, values in scores.items()}


def _trained(provenance: dict[str, Any]) -> str:
    settings = provenance.get("settings", {})
    shown = {key: settings[key] for key in ("mode", "masks", "steps", "batch_size", "seed") if key in settings}
    margins = "margins calibrated" if "calibration" in provenance else "margins as trained, not calibrated"
    return ", ".join([*(f"{key} {value}" for key, value in shown.items()), margins])


def _table(own: dict[str, Any], plans: dict[str, str]) -> str:
    plain = own["plain"]
    overlaps = [heading for score in SCORES.values() for heading in (score, f"{score} change")]
    lines = [[
        "plan", "PPL", "PPL change", *overlaps, "output tokens", "KV cache", "KV of the output",
        "FLOPs without a cache", "Eq. 13",
    ]]  # fmt: skip
    for name, scores in own.items():
        read, computed = _mean(scores["read"]), _mean(scores["computed"])
        cells = [f"{name}: `{plans[name]}`".replace("|", "\\|")]
        for key in ("perplexity", *SCORES):
            if key not in scores:
                cells += [NOTHING, NOTHING]
                continue
            cells += [f"{_mean(scores[key]):.3f}", "" if name == "plain" else _interval(difference(plain[key], scores[key]))]
        cells.append(f"{read:.1f} -> {computed:.1f}" if computed != read else f"{read:.1f}")
        cells += [_with_share(_mean(scores[key]), _mean(plain[key]), human_bytes) for key in ("kv_bytes", "output_kv_bytes")]
        cells += [
            _with_share(_mean(scores[key]), _mean(plain[key]), human_flops) for key in ("last_pass_flops", "output_flops")
        ]
        lines.append(cells)
    return _markdown(lines)


def _tasks(rows: dict[tuple[str, str], Any], tasks: Sequence[str], names: Sequence[str], overlap: str) -> str:
    lines = [["plan", *tasks]]
    for name in names:
        cells = []
        for task in tasks:
            scores, plain = rows.get((task, name)), rows[task, "plain"]
            if scores is None:
                cells.append(NOTHING)
                continue
            shown = []
            for key in ("perplexity", overlap):
                change = difference(plain[key], scores[key])
                text = f"{_mean(scores[key]):.3f}"
                shown.append(f"**{text}**" if name != "plain" and _leaves_zero_out(change) else text)
            cells.append(f"{shown[0]} ({shown[1]})")
        lines.append([name, *cells])
    return _markdown(lines)


def _verdict(own: dict[str, Any], measured: Sequence[str]) -> str:
    """Learned choices against each control at equal tokens, in words."""
    said = []
    for learned, controls in PAIRS.items():
        for control in controls:
            if learned in own and control in own:
                perplexity = difference(own[control]["perplexity"], own[learned]["perplexity"])
                words = [f"PPL {_word(perplexity, lower=True)}, {_interval(perplexity)}"]
                for key in measured:
                    score = difference(own[control][key], own[learned][key])
                    words.append(f"{SCORES[key]} {_word(score, lower=False)}, {_interval(score)}")
                said.append(f"- {learned} against {control}: {'; '.join(words)}.")
    return "\n".join(said)


def _word(change: Mean, lower: bool) -> str:
    if not _leaves_zero_out(change):
        return "**not told apart**"
    return "better" if (change.value < 0) == lower else "worse"


def _leaves_zero_out(change: Mean) -> bool:
    return change.low is not None and change.high is not None and (change.low > 0 or change.high < 0)


def _interval(mean: Mean) -> str:
    return f"{mean.value:+.3f}" + ("" if mean.low is None else f" [{mean.low:+.3f}, {mean.high:+.3f}]")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _with_share(value: float, plain: float, shown: Any) -> str:
    return f"{shown(value)} ({100 * value / plain:.1f} %)"


def _markdown(lines: list[list[str]]) -> str:
    heading, *rest = lines
    return "\n".join("| " + " | ".join(line) + " |" for line in (heading, ["---"] * len(heading), *rest))


def plot(own: dict[str, Any], measured: Sequence[str], path: Path) -> None:
    """Perplexity and scores of answers of every plan against the KV cache that is left, with 95 % intervals over samples."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = {"perplexity": "perplexity", **{key: SCORES[key] for key in measured}}
    figure, axes = pyplot.subplots(1, len(shown), figsize=(1 + 5 * len(shown), 4.6), layout="constrained")
    plain = _mean(own["plain"]["kv_bytes"])
    for axis, (key, label) in zip(axes, shown.items(), strict=True):
        for name, scores in own.items():
            color, marker = STYLES[name]
            mean, left = mean_of(scores[key]), 100 * _mean(scores["kv_bytes"]) / plain
            spread = None if mean.low is None or mean.high is None else [[mean.value - mean.low], [mean.high - mean.value]]
            axis.errorbar(
                left, mean.value, spread, color=color, marker=marker, linestyle="", markersize=7, label=name, capsize=2
            )
        axis.set_xlabel("KV cache after the caption, % of the plain model's")
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=8, frameon=False)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
