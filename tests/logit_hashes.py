"""Hashes of the answers of every family under every example of every method: what must not change when code is moved.

    python -m tests.logit_hashes > before.tsv          and afterwards > after.tsv, then diff

One line for each: the family, the plan, and a hash of the logits of a ragged batch with and without a KV cache, with the
bytes that the cache held; or the line with which the plan is refused. On one machine, with one thread, equal code gives
equal bits.
"""

from __future__ import annotations

import hashlib
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

import foveate
from foveate.errors import FoveateError
from tests import examples, tiny
from tests.trained import random_predictors


def plans() -> list[str]:
    """Every example, alone and after another stage, in front of decoder layers, inside the encoder, and for answers."""
    every = [*examples.single_plans(), *examples.first_plans(), *examples.two_stages(), *examples.three_stages()]
    every += [*examples.gated_plans(), *examples.text_plans(), *examples.recipe_plans(), *examples.encoder_plans(1)]
    return list(dict.fromkeys(every))


def lines() -> Iterator[str]:
    """The lines, family by family."""
    for family in tiny.ALL_FAMILIES:
        model, maker = tiny.tiny_model(family), tiny.Maker(family)
        inputs = maker.inputs(tiny.ragged_rows(maker, 3))
        with tempfile.TemporaryDirectory() as folder:
            options = dict(layer=tiny.FIRST_LAYER[family], instruct_keep=0.5)
            path, _ = random_predictors(Path(folder), model, inputs=inputs, **options)
            for plan in plans():
                yield f"{family}\t{plan}\t{answered(model, examples.filled(plan, family, path), inputs)}"


def answered(model: torch.nn.Module, plan: str, inputs: dict[str, Tensor]) -> str:
    """The hash of a plan's answers, or the line with which it is refused."""
    digest = hashlib.sha256()
    try:
        with foveate.attach(model, plan) as attachment:
            for options in ({}, {"use_cache": False}):
                for logits in tiny.generate(model, inputs, 4, **options).logits:
                    digest.update(logits.float().contiguous().numpy().tobytes())
                digest.update(str(attachment.report().prefill_kv_bytes).encode())
    except FoveateError as error:
        return f"refused: {str(error).splitlines()[0][:100]}"
    return digest.hexdigest()[:16]


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for line in lines():
        print(line, flush=True)
