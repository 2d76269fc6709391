"""A transformers that is newer than the newest tested one is tried before it is trusted, on a tiny random model of the family.

A renamed keyword must not reach a user as a wrong answer. The check takes a second or two, once per process; what passed is
remembered in the user's cache directory, by the versions of foveate, transformers and torch.
"""

from __future__ import annotations

import json
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import transformers
from platformdirs import user_cache_path
from torch import Tensor

from foveate import families, methods
from foveate.core.budget import Budget
from foveate.core.plan import Plan, Stage
from foveate.core.site import Site, SiteKind
from foveate.engine import compat
from foveate.engine.attachment import Attachment
from foveate.errors import FoveateError, FoveateWarning, InputError, UnsupportedModel
from foveate.files.reading import read_json
from foveate.files.writing import make_folder, write_file
from foveate.spec import parse
from foveate.version import NEWEST_TESTED_TRANSFORMERS, __version__

_STEPS = 3
_TOLERANCE = 1e-3  # logits of tiny models are around 10, roundings around 1e-6
# Ids that tiny configs give to placeholders and their brackets.
_SPECIAL = list(range(85, 99))
_passed: set[str] = set()


def ensure(family: families.Family) -> None:
    """Check a family on an untested transformers, unless it has passed before.

    Raises:
        UnsupportedModel: names the newest tested version.
    """
    name = type(family).__module__.rpartition(".")[2]
    if not compat.is_untested() or name in _passed:
        return
    newest = ".".join(map(str, NEWEST_TESTED_TRANSFORMERS))
    if name not in _remembered():
        reason = failure(name)
        if reason is not None:
            raise UnsupportedModel(
                f"foveate was tested up to transformers {newest}; on {transformers.__version__} its self-check of "
                f"{family.title} fails ({reason}): install transformers {newest}, or a newer foveate"
            )
        _remember(name)
    _passed.add(name)
    warnings.warn(
        f"foveate was tested up to transformers {newest}, this is {transformers.__version__}; its self-check of {family.title} "
        "passed",
        FoveateWarning,
        stacklevel=3,
    )


def failure(name: str) -> str | None:
    """Run the self-check of a family, whatever was remembered; returns what went wrong in words, None if all is well."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny models are slower on many
    try:
        compat.refuse_broken(families.get(name))
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            _check(name)
    except FoveateError as error:
        return str(error)
    except Exception as error:  # whatever a new version does
        return f"{type(error).__name__}: {error}"
    finally:
        torch.set_num_threads(threads)
    return None


def _check(name: str) -> None:
    from foveate.api.capabilities import tiny_model

    model, _ = tiny_model(name)
    family, config = families.get(name), model.config
    inputs = _two_rows(family, config)
    if family.is_text_only:
        return _check_gate(model, family, inputs)
    layers = range(1, len(family.decoder_windows(config)))
    full = family.full_layers(config)
    layer = next(at for at in layers if any(low < at for low in full) and family.refuse_layer(config, at) is None)
    everything = _stage("random", Site(SiteKind.PRE_LLM), 1.0)
    plain = _logits(model, inputs)
    with Attachment(model, Plan((everything,)), shortcut=False):
        _same(plain, _logits(model, inputs), "keeping everything changes the answer")
    attended = _stage("fastv", Site(SiteKind.LLM_LAYER, layer), 0.5)
    with Attachment(model, Plan((attended,))):
        together = _logits(model, inputs)
        for row in range(2):
            alone = _logits(model, _row(inputs, row, family, config))
            _same(together[row : row + 1], alone, "a row in a batch is not as it is alone")
    fixed = _stage("random", Site(SiteKind.PRE_LLM), 0.5)
    with Attachment(model, Plan((fixed,))) as attachment:
        out = _generate(model, inputs)
        _same(torch.stack(out.logits, 1), _logits(model, inputs, use_cache=False), "a cache changes the answer")
        kept = [len(entry.kept_index) < entry.medium.shape.grid_tokens for entry in attachment.trace]
        if len(kept) != 2 or not all(kept):
            raise InputError("half of each picture was to be dropped, and was not")
        if not family.bidirectional:  # where a prompt sees itself in both directions, more text is another prompt
            _second_turn(model, inputs, out, family, config)


def _check_gate(model: Any, family: families.Family, inputs: dict[str, Tensor]) -> None:
    """Gated decoding of a model that no other stage can act on."""
    plain = _logits(model, inputs)
    with Attachment(model, Plan((_stage("random_gate", Site(SiteKind.DECODE, 2), 1.0),))):
        _same(plain, _logits(model, inputs), "keeping everything changes the answer")
    with Attachment(model, parse("random_gate(layer=2, keep=0.5, recent=0)")) as attachment:
        together = _logits(model, inputs)
        if torch.stack(attachment.trace.answer_kept).all():
            raise InputError("half of the answer was to be rejected, and was not")
        _same(together, _logits(model, inputs, use_cache=False), "a cache changes the answer")
        for row in range(2):
            alone = _logits(model, _row(inputs, row, family, model.config))
            _same(together[row : row + 1], alone, "a row in a batch is not as it is alone")


def _second_turn(model: Any, inputs: dict[str, Tensor], out: Any, family: families.Family, config: Any) -> None:
    """More text on the pruned cache, against the whole conversation read again."""
    ids = torch.cat([out.sequences, torch.tensor([[5, 6, 7], [8, 9, 10]])], dim=1)
    mask = torch.cat([inputs["attention_mask"], torch.ones(2, ids.shape[1] - inputs["attention_mask"].shape[1]).long()], dim=1)
    both = {"input_ids": ids, "attention_mask": mask}
    media = {key: value for key, value in inputs.items() if key not in both}
    media |= {key: value for key, value in family.tiny_batch(config, ids, []).items() if key not in both}
    turn = {key: value for key, value in media.items() if value.shape[:2] == ids.shape}
    whole = _logits(model, {**both, **media}, use_cache=False)
    _same(_logits(model, {**both, **turn}, **{compat.CACHE: compat.cache_in(out)}), whole, "a second turn on its cache differs")


def _media(family: families.Family, config: Any) -> list[families.TinyMedium]:
    """A picture for each of the two prompts, always the same ones."""
    random = torch.Generator().manual_seed(0)
    return [] if family.is_text_only else [family.tiny_medium(config, "image", 0, random) for _ in range(2)]


def _two_rows(family: families.Family, config: Any) -> dict[str, Tensor]:
    """Two prompts of unequal length with a picture each, padded on the left."""
    media = _media(family, config)
    pictures = [medium.ids for medium in media] or [torch.arange(30, 33)] * 2
    rows = [torch.cat([torch.arange(3, 3 + n), ids, torch.arange(20, 24)]) for n, ids in zip((5, 2), pictures, strict=True)]
    width = max(map(len, rows))
    ids, mask = torch.zeros(2, width, dtype=torch.long), torch.zeros(2, width, dtype=torch.long)
    for number, row in enumerate(rows):
        ids[number, width - len(row) :], mask[number, width - len(row) :] = row, 1
    return {"input_ids": ids, "attention_mask": mask} | family.tiny_batch(config, ids, media)


def _row(inputs: dict[str, Tensor], row: int, family: families.Family, config: Any) -> dict[str, Tensor]:
    """One of the two prompts alone, without its padding."""
    ids = inputs["input_ids"][row][inputs["attention_mask"][row].bool()][None]
    media = _media(family, config)[row : row + 1]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)} | family.tiny_batch(config, ids, media)


def _generate(model: Any, inputs: dict[str, Tensor], **options: Any) -> Any:
    fixed: dict[str, Any] = {
        "max_new_tokens": _STEPS,
        "min_new_tokens": _STEPS,
        "do_sample": False,
        "pad_token_id": 0,
        "eos_token_id": None,
    }
    fixed["suppress_tokens"] = _SPECIAL
    return model.generate(**inputs, **fixed, return_dict_in_generate=True, output_logits=True, **options)


def _logits(model: Any, inputs: dict[str, Tensor], **options: Any) -> Tensor:
    """[B, steps, vocabulary]"""
    return torch.stack(_generate(model, inputs, **options).logits, dim=1)


def _same(found: Tensor, wanted: Tensor, what: str) -> None:
    if found.shape != wanted.shape or not float((found - wanted).abs().max()) < _TOLERANCE:
        raise InputError(what)


def _stage(method: str, site: Site, keep: float) -> Stage:
    return Stage(site, methods.get(method)(), Budget.of_ratio(keep))


def _file() -> Path:
    versions = f"{__version__}-transformers-{transformers.__version__}-torch-{torch.__version__}"
    return user_cache_path("foveate") / f"self-check-{versions}.json"


def _remembered() -> list[str]:
    """The families that passed in another process. A file that cannot be read is as good as none."""
    try:
        known = read_json(_file())
    except FoveateError:
        return []
    return [name for name in known if isinstance(name, str)] if isinstance(known, list) else []


def _remember(name: str) -> None:
    with suppress(FoveateError, OSError):  # a home that cannot be written is no reason to refuse
        make_folder(_file().parent)
        write_file(_file(), json.dumps(sorted({*_remembered(), name})))
