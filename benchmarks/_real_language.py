"""What a pretrained language model loses under gates, and where it looks: English texts that Python and packages ship."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

import foveate
from foveate.core.attention import Raters
from foveate.evaluate.reading import Rounds, read_rounds

PROMPT, ANSWER = 64, 192  # tokens of each text: given, and scored
TOPICS = 8
READMES = ("torch", "transformers", "pillow", "rich", "accelerate")
LICENCES = ("transformers", "matplotlib", "hypothesis")
KEEPS = (0.5, 0.25, 0.75)
WINDOWS = (8, 64)
SINK_TEXTS, SINK_TOKENS, SINK_ANSWER = 8, 200, 8


@dataclass(frozen=True)
class Text:
    """An English text, and where it is from."""

    source: str
    content: str


def texts() -> list[Text]:
    """Topics of Python's own help, README files and licences of installed packages: as they are, in a fixed order."""
    spec = find_spec("pydoc_data.topics")
    assert spec is not None
    from pydoc_data.topics import topics

    longest = sorted(topics, key=lambda name: (-len(topics[name]), name))[:TOPICS]
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    found = [Text(f"Python {version}, help of {name}", topics[name]) for name in longest]
    for name in READMES:
        about = metadata.metadata(name)
        found.append(Text(f"README of {name} {about['Version']}", about.get_payload() or about["Description"]))
    for name in LICENCES:
        about = metadata.metadata(name)
        path = next(file for file in metadata.files(name) or () if re.search(r"LICENSE", file.name))
        found.append(Text(f"licence of {name} {about['Version']}", Path(str(path.locate())).read_text(encoding="utf-8")))
    return found


def plans() -> dict[str, str]:
    """Gates by share, with the default window and bare; other windows, the first tokens, and a later layer."""
    found = {"plain": "none"}
    for keep in KEEPS:
        for name in ("random", "stride"):
            for recent in (0, 32):
                text = f"{name}_gate(layer=2, keep={keep}, recent={recent})"
                found[text] = text
    rest = [f"layer=2, keep=0.5, recent={recent}" for recent in WINDOWS]
    rest += ["layer=2, keep=0.5, recent=0, first=32", "layer=2, keep=0.5, recent=32, first=32"]
    rest += ["layer=15, keep=0.5, recent=0", "layer=15, keep=0.5, recent=32"]
    return found | {f"random_gate({words})": f"random_gate({words})" for words in rest}


def passages(tokenizer: Any, count: int | None = None) -> dict[str, Rounds]:
    """The first tokens of each text as a prompt and an answer, by source; texts that are too short are left out."""
    found = {}
    for text in texts():
        ids = torch.tensor(tokenizer(text.content)["input_ids"][: PROMPT + ANSWER])
        if len(ids) == PROMPT + ANSWER:
            prompt = ids[None, :PROMPT]
            found[text.source] = Rounds({"input_ids": prompt, "attention_mask": torch.ones_like(prompt)}, (ids[PROMPT:],))
    return dict(list(found.items())[:count])


def readings(model: Any, rounds: Mapping[str, Rounds], plan: str) -> dict[str, list[float]]:
    """Mean loss of each passage, bytes of the answer's keys and values, and whether each token was stored, as a share."""
    found: dict[str, list[float]] = {"loss": [], "answer_kv_bytes": [], "stored": []}
    with foveate.attach(model, plan) if plan != "none" else nullcontext() as attachment:
        for one in rounds.values():
            (reading,) = read_rounds(model, one, attachment)
            found["loss"].append(round(float(reading.losses.mean()), 6))
            found["answer_kv_bytes"].append(float(reading.answer_kv_bytes or 0))
            found["stored"].append(1.0 if reading.stored is None else round(float(reading.stored.float().mean()), 4))
    return found


def sinks(model: Any, tokenizer: Any, count: int = SINK_TEXTS) -> dict[str, list[list[float]]]:
    """Share of attention on the first token by rater: [texts, layers]. A picture stands behind each text, as the study asks."""
    placeholder, visual = model.config.image_token_id, model.config.image_seq_length
    found: dict[str, list[list[float]]] = {kind.value: [] for kind in Raters}
    side = model.config.vision_config.image_size[0]
    for text in texts()[:count]:
        said = tokenizer(text.content)["input_ids"][:SINK_TOKENS]
        ids = torch.tensor([[*said, *[placeholder] * visual, *tokenizer(" This is")["input_ids"]]])
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": torch.zeros(1, 3, side, side)}
        study = foveate.attention(model, inputs, max_new_tokens=SINK_ANSWER)
        for kind in Raters:
            if kind is not Raters.OUTPUT or study.has_answer(0):
                found[kind.value].append([round(float(value), 5) for value in study.rows[kind][:, 0, 0]])
    return found


def runs_of(layers: Sequence[float], parts: Sequence[tuple[int, int]]) -> list[float]:
    """The mean of some runs of layers, ends included."""
    return [sum(layers[low : high + 1]) / (high + 1 - low) for low, high in parts]
