"""Measuring, while a plain model answers, where its tokens look. Hooks like those of a plan, and gone afterwards.

Rows are taken at the steps that generate() runs anyway: the prompt's last token at the end of the prefill, each token of the
answer when it passes the model. So the queries and keys are the model's own under any mask, cache and position rule, and one
row per head is all that is ever held.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask

from foveate.core.attention import AttentionStudy, Raters
from foveate.core.layout import Layout, Role
from foveate.engine import attention_rows, compat, observe
from foveate.engine import layout as layouts
from foveate.engine.carrying import attachment_of
from foveate.errors import AttachError, InputError
from foveate.families import Family, family_for

# What generate() gets besides the caller's inputs: one greedy answer whose every column has a key in the cache.
_GREEDY: Mapping[str, Any] = dict(
    do_sample=False,
    num_beams=1,
    num_return_sequences=1,
    use_cache=True,
    cache_implementation="dynamic",
    prefill_chunk_size=None,
    output_attentions=False,
    return_dict_in_generate=True,
)

_current: ContextVar[_Meter | None] = ContextVar("foveate_meter", default=None)


def study(model: nn.Module, inputs: Mapping[str, Any], new_tokens: int, layers: Sequence[int] | None) -> AttentionStudy:
    """Answer greedily and measure; see `foveate.attention`."""
    family = family_for(model.config)
    windows = family.decoder_windows(model.config)
    chosen = _chosen(layers, len(windows), family.stateful_layers(model.config))
    prompt = _prompt(model, family, inputs, new_tokens)
    meter = _Meter(model, prompt, new_tokens)
    with meter.installed(model.get_submodule(family.decoder), family, chosen, windows), torch.no_grad():
        # One token more than is measured: what comes out last never goes in, so it has no row.
        output = model.generate(**inputs, **_GREEDY, max_new_tokens=new_tokens + 1)  # type: ignore[operator]
    return meter.result(output.sequences, chosen, tuple(windows[layer] for layer in chosen))


def _chosen(layers: Sequence[int] | None, total: int, stateful: frozenset[int]) -> tuple[int, ...]:
    if layers is None:
        return tuple(layer for layer in range(total) if layer not in stateful)
    wrong = [layer for layer in layers if isinstance(layer, bool) or not isinstance(layer, int) or not 0 <= layer < total]
    if wrong or not len(layers):
        given = ", ".join(map(str, wrong)) or "none"
        raise InputError(f"layers: {given}; this model has {total} decoder layers, write some of 0..{total - 1}")
    without = sorted(stateful.intersection(layers))
    if without:
        raise InputError(f"layers: {', '.join(map(str, without))} carry a state and do not attend")
    return tuple(sorted(set(layers)))


def _prompt(model: nn.Module, family: Family, inputs: Mapping[str, Any], new_tokens: int) -> Layout:
    """The layout of the prompt, after everything that can be refused was."""
    if isinstance(new_tokens, bool) or not isinstance(new_tokens, int) or new_tokens < 1:
        raise InputError(f"max_new_tokens={new_tokens!r}: write a whole number of at least 1")
    attachment = attachment_of(model)
    if attachment is not None and attachment.is_installed:
        raise AttachError(
            f"this model carries the plan '{attachment}', and the study looks at the plain model: "
            "run it inside attachment.disabled(), or detach the plan"
        )
    if not hasattr(model, "generate"):
        raise AttachError(f"{type(model).__name__} has no generate(): give the model with its head")
    ids, mask = inputs.get("input_ids"), inputs.get("attention_mask")
    if not isinstance(ids, Tensor) or compat.cache_of(inputs) is not None:
        raise InputError("an attention study runs a whole prompt from input_ids: pass what the processor returned")
    taken = sorted({*_GREEDY, "max_new_tokens", "max_length", "generation_config"} & set(inputs))
    if taken:
        raise InputError(f"an attention study sets {', '.join(taken)} itself: leave it out of the inputs")
    codes = layouts.column_codes(family, model.config, ids, None, mask, nn.Identity())
    codes, near = layouts.fetch(codes, inputs, family.host_inputs)
    prompt = layouts.build_layout(family, model.config, near, codes, ids.shape[1])
    if prompt is None and family.is_text_only:
        prompt = Layout.of_text(codes != layouts.PADDING, ids.shape[1])
    if prompt is None:
        raise InputError("there is no picture in the prompt, so there is no attention to pictures to study")
    if not bool(prompt.real[:, -1].all()):
        raise InputError("shorter prompts are padded on the right, where the answer goes on: use padding_side='left'")
    return prompt


class _Meter:
    """Sums of attention rows by layer and rater, and how far the answer has got.

    Args:
        model: the plain model.
        prompt: layout of the prompt.
        new_tokens: longest answer.
    """

    def __init__(self, model: nn.Module, prompt: Layout, new_tokens: int) -> None:
        self.model, self.prompt, self.new_tokens = model, prompt, new_tokens
        ends: Any = model.generation_config.eos_token_id  # type: ignore[union-attr]
        self.ends = torch.tensor([] if ends is None else ends, dtype=torch.long, device="cpu").flatten()
        self.columns = 0  # columns that have passed the model, those of the running call included
        self.live = torch.ones(prompt.roles.shape[0], dtype=torch.bool, device="cpu")  # rows whose answer goes on
        self.counts = torch.zeros(prompt.roles.shape[0], dtype=torch.float32, device="cpu")
        self.sums: dict[tuple[Raters, int], Tensor] = {}

    @contextmanager
    def installed(
        self, decoder: nn.Module, family: Family, layers: Sequence[int], windows: Sequence[int | None]
    ) -> Iterator[None]:
        """The hooks, for the calls of this context only."""
        modules = [decoder.get_submodule(f"layers.{layer}.{family.attention}") for layer in layers]
        handles = [self.model.register_forward_pre_hook(self._before_model, with_kwargs=True)]
        token = _current.set(self)
        observe.enable(self)
        try:
            for layer, module in zip(layers, modules, strict=True):
                measure = partial(self._measure, layer, windows[layer])
                handles.append(module.register_forward_pre_hook(partial(self._before_attention, measure)))
                handles.append(module.register_forward_hook(self._after_attention, always_call=True))
            yield
        finally:
            for handle in handles:
                handle.remove()
            for module in modules:  # torch runs no hooks after KeyboardInterrupt
                observe.disarm(module)
            observe.disable(self)
            _current.reset(token)

    def _before_model(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if _current.get() is not self:
            return  # another thread's call of the same model
        ids: Tensor = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        self.columns += ids.shape[1]
        if self.columns > self.prompt.width:
            if self.live.device != ids.device:
                self.live, self.counts, self.ends = (part.to(ids.device) for part in (self.live, self.counts, self.ends))
            self.live = self.live & ~torch.isin(ids[:, -1], self.ends)
            self.counts += self.live

    def _before_attention(self, measure: observe.Callback, module: nn.Module, args: tuple[Any, ...]) -> None:
        if _current.get() is self:
            observe.arm(module, measure)

    def _after_attention(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if _current.get() is self:
            observe.disarm(module)

    def _measure(
        self,
        layer: int,
        window: int | None,
        query: Tensor,
        key: Tensor,
        mask: Any,
        scaling: float | None,
        softcap: float | None,
    ) -> None:
        """Add the row of the newest token. A layer may run for the prompt's last columns alone: that one is always there."""
        batch, keys = query.shape[0], key.shape[2]
        last = torch.full((batch, 1), query.shape[2] - 1, device=query.device)
        mask = _within(mask, window, batch, keys, query.device)
        row = attention_rows.attention_rows(query, key, mask, last, torch.ones_like(last, dtype=torch.bool), scaling, softcap)
        raters = Raters.INSTRUCTION if self.columns == self.prompt.width else Raters.OUTPUT
        if raters is Raters.OUTPUT:
            row = row * self.live.to(row.device)[:, None, None]
        if (raters, layer) not in self.sums:
            self.sums[raters, layer] = row.new_zeros(batch, self.prompt.width + self.new_tokens)
        # A sliding cache layer holds the last columns only.
        self.sums[raters, layer][:, self.columns - keys : self.columns] += row.mean(1)

    def result(self, sequences: Tensor, layers: tuple[int, ...], windows: tuple[int | None, ...]) -> AttentionStudy:
        """The means, once the answer is complete."""
        counts, start = self.counts.cpu(), self.prompt.width
        lengths = [int(count) for count in counts]
        width = start + max(lengths)
        whole = self.prompt.extended(width)
        roles = whole.roles.clone()
        for row, length in enumerate(lengths):
            roles[row, start + length :] = int(Role.PAD)
        divisors = {Raters.INSTRUCTION: torch.ones_like(counts), Raters.OUTPUT: counts.clamp(min=1)}
        nothing = torch.zeros(len(lengths), start + self.new_tokens, dtype=torch.float32, device="cpu")
        rows = {
            raters: torch.stack([self.sums.get((raters, layer), nothing).cpu()[:, :width] for layer in layers]) / by[:, None]
            for raters, by in divisors.items()
        }
        answers = tuple(row[start : start + length].cpu() for row, length in zip(sequences, lengths, strict=True))
        return AttentionStudy(layers, windows, replace(whole, roles=roles), answers, rows)


def _within(mask: Any, window: int | None, batch: int, keys: int, device: torch.device) -> Any:
    """The mask of the newest token's row. Flash gets its window as an argument of the kernel, and so its masks know none."""
    if window is None or window >= keys or isinstance(mask, BlockMask) or (mask is not None and mask.ndim == 4):
        return mask
    seen = torch.ones(batch, keys, dtype=torch.bool, device=device) if mask is None else mask[:, -keys:].bool()
    return seen & (torch.arange(keys, device=device) >= keys - window)
