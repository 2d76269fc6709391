"""The attention study of the FastV paper (section 3) on the embedded demo model, averaged over held-out prompts.

    python -m benchmarks.attention --questions 40 --out benchmarks/results/NAME.json --page docs/attention.md

Per decoder layer: how the attention of the answer's tokens, and of the prompt's last token, is divided among system, visual,
instruction and output tokens, and what one token of each kind receives.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

import foveate
from benchmarks._results import write_results
from foveate.core.attention import KINDS, Raters
from foveate.demo.evaluation import conversation, held_out_samples, versions
from foveate.demo.loading import load_demo
from foveate.demo.samples import KIND_OF_TASK, TASKS

SEED, BATCH, NEW_TOKENS = 2, 20, 24
NAMES = {"SYSTEM": "system", "VISUAL": "visual", "INSTRUCT": "instruction", "OUTPUT": "output"}
COLORS = {"system": "#0072B2", "visual": "#E69F00", "instruction": "#009E73", "output": "#CC79A7"}
WHOSE = {"output": "the answer's tokens", "instruction": "the prompt's last token"}

PAGE = """# Where the demo model looks

The study of FastV (arXiv 2403.06764, section 3) on the [embedded demo model](../foveate/demo/assets/model/README.md): {prompts}
held-out prompts with one picture ({tasks} tasks), greedy answers of up to {new_tokens} tokens, means over heads and prompts. A
prompt has {visual} visual tokens and on average {system:.0f} system, {instruction:.0f} instruction and {output:.1f} output
tokens. Raw file: `{raw}`. Made by `python -m benchmarks.attention`; `foveate view attention` does the same for one
prompt of any model, with heat maps.

![Shares of attention by layer, and attention per token](pictures/attention.png)

{tables}

{reading}

![Heat maps of one answer, by layer](pictures/attention-heat.png)

One of the pictures, asked "{question}": the visual tokens that the tokens of the answer look at, layer by layer
(`foveate view attention`).
"""


def study(questions: int, folder: Path | None) -> dict[str, Any]:
    """Means over prompts: shares and shares per token, by rater and layer."""
    model, processor = load_demo(folder)
    tasks = [task for task in TASKS if KIND_OF_TASK[task] == "single"]
    samples = held_out_samples(questions, SEED, tasks)
    asked = [(sample, question) for sample in samples for question in sample.questions]
    asked.sort(key=lambda pair: len(pair[1].text))
    shares: dict[str, list[Any]] = {kind.value: [] for kind in Raters}
    counts = []
    for start in range(0, len(asked), BATCH):
        inputs = processor.apply_chat_template(
            [conversation(*pair) for pair in asked[start : start + BATCH]], add_generation_prompt=True, tokenize=True,
            return_dict=True, return_tensors="pt", processor_kwargs={"padding": True},
        )  # fmt: skip
        found = foveate.attention(model, inputs, max_new_tokens=NEW_TOKENS)
        counts.append(found.token_counts().numpy())
        for kind in Raters:
            answered = [row for row in range(len(found.answers)) if found.has_answer(row)]
            shares[kind.value].append(found.shares(kind)[:, answered].numpy())
        print(f"{min(start + BATCH, len(asked))} of {len(asked)} prompts", flush=True)
    tokens = np.concatenate(counts)
    raters = {}
    for name, parts in shares.items():
        values = np.concatenate(parts, axis=1)  # [L, prompts, kinds]
        per_token = np.divide(values, tokens[None], out=np.full(values.shape, np.nan), where=tokens[None] > 0)
        raters[name] = {"shares": values.mean(1).tolist(), "per_token": np.nanmean(per_token, axis=1).tolist()}
    return {
        "what": "attention of the demo model by decoder layer, means over heads and prompts",
        "prompts": len(asked), "tasks": len(tasks), "seed": SEED, "new_tokens": NEW_TOKENS, "versions": versions(),
        "kinds": [NAMES[kind.name] for kind in KINDS], "tokens": tokens.mean(0).tolist(), "raters": raters,
    }  # fmt: skip


def write_page(report: dict[str, Any], raw: Path, page: Path, question: str) -> None:
    """The page with its plot."""
    kinds, tokens = report["kinds"], dict(zip(report["kinds"], report["tokens"], strict=True))
    tables = []
    for name, rater in report["raters"].items():
        seen = [i for i, kind in enumerate(kinds) if name == "output" or kind != "output"]
        lines = [f"Attention of {WHOSE[name]}: share, and in brackets what one token of that kind gets.", ""]
        lines += ["| layer | " + " | ".join(kinds[i] for i in seen) + " |", "|---" * (1 + len(seen)) + "|"]
        for layer, (share, each) in enumerate(zip(rater["shares"], rater["per_token"], strict=True)):
            lines.append(f"| {layer} | " + " | ".join(f"{100 * share[i]:.1f} % ({100 * each[i]:.2f} %)" for i in seen) + " |")
        tables.append("\n".join(lines))
    visual = [layer[kinds.index("visual")] for layer in report["raters"]["output"]["shares"]]
    per_visual = [layer[kinds.index("visual")] for layer in report["raters"]["output"]["per_token"]]
    per_text = [layer[kinds.index("instruction")] for layer in report["raters"]["output"]["per_token"]]
    ratio = [text / image for text, image in zip(per_text, per_visual, strict=True)]
    early, late = float(np.mean(visual[:2])), float(np.mean(visual[2:]))
    reading = (
        f"The answer's tokens give the picture {100 * min(visual):.0f} to {100 * max(visual):.0f} % of their attention, most "
        f"in layer {int(np.argmax(visual))}, least in layer {int(np.argmin(visual))}. One instruction token gets "
        f"{min(ratio):.1f} to {max(ratio):.1f} times as much as one visual token.\n\n"
        "The paper found that the visual share of LLaVA-1.5-7B collapses after the first two layers. Here it is "
        f"{100 * early:.0f} % in layers 0 and 1 and {100 * late:.0f} % on average after them: "
        f"it {'collapses too' if late < early / 2 else 'does **not** collapse'}."
    )
    page.parent.joinpath("pictures").mkdir(parents=True, exist_ok=True)
    _plot(report, page.parent / "pictures" / "attention.png")
    page.write_text(
        PAGE.format(
            prompts=report["prompts"], tasks=report["tasks"], new_tokens=report["new_tokens"], visual=round(tokens["visual"]),
            system=tokens["system"], instruction=tokens["instruction"], output=tokens["output"], raw=raw.as_posix(),
            tables="\n\n".join(tables), reading=reading, question=question,
        ),
        encoding="utf-8",
    )  # fmt: skip


def _plot(report: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    figure, axes = pyplot.subplots(2, 2, figsize=(11, 7.6), layout="constrained")
    for (left, right), (name, rater) in zip(axes, report["raters"].items(), strict=True):
        shares, each = np.array(rater["shares"]), np.array(rater["per_token"])
        base = np.zeros(len(shares))
        for i, kind in enumerate(report["kinds"]):
            if name != "output" and kind == "output":
                continue
            left.bar(range(len(shares)), 100 * shares[:, i], bottom=100 * base, color=COLORS[kind], label=kind)
            right.plot(100 * each[:, i], color=COLORS[kind], marker="osD^"[i], label=kind)
            base += shares[:, i]
        left.set(title=f"attention of {WHOSE[name]}", xlabel="decoder layer", ylabel="share (%)")
        right.set(title="the same per token of that kind", xlabel="decoder layer", ylabel="per token (%)", yscale="log")
        right.grid(alpha=0.25)
        right.yaxis.set_major_formatter("{x:g}")
        right.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        right.yaxis.set_minor_formatter(ticker.NullFormatter())
    figure.legend(*axes[0][1].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.savefig(path, dpi=100)


def main() -> None:
    """Measure, and write the file and the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=40, help="per task")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--page", type=Path, default=None)
    parser.add_argument("--question", default="describe the image in detail.", help="of the heat maps beside the page")
    parser.add_argument("--model", type=Path, default=None, help="a trained demo model; the shipped one if left out")
    options = parser.parse_args()
    report = json.loads(options.out.read_text()) if options.out.exists() else study(options.questions, options.model)
    if not options.out.exists():
        write_results(options.out, report)
    if options.page is not None:
        write_page(report, options.out, options.page, options.question)


if __name__ == "__main__":
    main()
