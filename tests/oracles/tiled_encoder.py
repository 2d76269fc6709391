"""Encoders whose tokens are laid out anew behind them, and their references.

The reference knows nothing of how a family lays its tokens out: it sends one-hot features through the model's own code to
learn which patches each visual token is made of, and replays the methods' answers at full length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from foveate import families
from foveate.core.selection import Selection
from foveate.core.trace import MediumTrace, Trace
from foveate.engine import compat
from foveate.families import TinyMedium, family_for
from tests import tiny
from tests.core.test_trace import dense
from tests.families.features import flat, on_grid

WEIGHTS = 1e-5


def deeper(family: str) -> Any:
    """A family's tiny config with five encoder layers and 36 patches in a tile."""
    config = families.get(family).tiny_config()
    config.vision_config.num_hidden_layers, config.vision_config.image_size = 5, 24
    if hasattr(config, "image_grid_pinpoints"):
        config.image_grid_pinpoints = [[24, 48], [48, 24], [48, 48]]
    if hasattr(config, "vision_aspect_ratio"):
        config.vision_aspect_ratio = "anyres_max_2"  # the nearly square picture is shrunk, the others are not
    return config


def pictures(maker: tiny.Maker) -> list[tiny.Row]:
    """A wide image; a high one with padding and a nearly square one, which some families shrink; none."""
    return tiny.ragged_rows(maker, 3)


def with_videos(maker: tiny.Maker) -> list[tiny.Row]:
    """A video; an image and a video; two images, an image twice."""
    video = "video"
    return [
        tiny.Row([maker.text(5), maker.picture(kind=video), maker.text(7)]),
        tiny.Row([maker.text(3), maker.picture(2), maker.text(4), maker.picture(kind=video), maker.text(5)]),
        tiny.Row([maker.text(2), maker.picture(1), maker.text(2), maker.picture(0), maker.text(9)]),
    ]


class Several(tiny.Maker):
    """Says how many images each prompt has: several have no tiles, but a newline token each."""

    def inputs(self, rows: list[tiny.Row], side: str = "left", mask: bool = True) -> dict[str, Tensor]:
        counts = [sum(isinstance(piece, TinyMedium) for piece in row.pieces) for row in rows]
        inputs = super().inputs(
            [self._untiled(row) if count > 1 else row for row, count in zip(rows, counts, strict=True)], side, mask
        )
        return inputs | ({"batch_num_images": torch.tensor(counts)} if any(counts) else {})

    def _untiled(self, row: tiny.Row) -> tiny.Row:
        pieces = [replace(p, ids=p.ids[: 36 + 1]) if isinstance(p, TinyMedium) else p for p in row.pieces]
        return tiny.Row(pieces)


CASES: dict[str, tuple[str, Callable[[tiny.Maker], list[tiny.Row]]]] = {
    "next": ("llava_next", pictures),
    "onevision": ("llava_onevision", pictures),
    "onevision-several": ("llava_onevision", pictures),
    "onevision-video": ("llava_onevision", with_videos),
    "next-video": ("llava_next_video", with_videos),
    "video-llava": ("video_llava", with_videos),
}


class Case:
    """A model and a batch of prompts."""

    def __init__(self, name: str, backend: str, side: str = "left") -> None:
        self.name, (self.family, rows) = name, CASES[name]
        config = deeper(self.family)
        self.model = tiny.tiny_model(self.family, backend, config=config)
        self.maker = (Several if name.endswith("several") else tiny.Maker)(self.family, config=config)
        self.rows = rows(self.maker)
        self.inputs = self.maker.inputs(self.rows, side)
        path = family_for(config).encoder(config)
        assert path is not None
        self.path = path
        with torch.no_grad():  # attention that is all but uniform ranks by rounding
            for tower in self.towers:
                for name, parameter in tower.named_parameters():
                    if name.endswith(("q_proj.weight", "k_proj.weight")):
                        parameter.mul_(0.2 / parameter.std())

    @property
    def towers(self) -> list[nn.Module]:
        return [self.model.get_submodule(tower) for tower in self.path.towers]

    @property
    def pooler(self) -> nn.Module | None:
        """What pools frames in front of the projector."""
        return self.model.get_submodule(self.path.pooler) if self.path.pooler else None

    @property
    def projector(self) -> nn.Module:
        return self.model.get_submodule(self.path.projector)


class Replay:
    """One call of the encoder at full length: what the answers of its stages mean for each of its rows.

    Attributes:
        alive: by layer, [R, patches] bool from there on.
        weights: by layer, [R, patches] what attention adds to the scores of those keys: the log of how many patches each stands
            for, from the first stage on that asks for it.
        changes: by layer, [R, patches, patches] what replaces the states that enter it.
        middle: layers whose stage stands within the block below, in front of its MLP.
        wholes: for each stage [R, patches, patches], rows of patches that are gone zero: what is made of what.
    """

    def __init__(self, answers: list[tuple[int, Selection, int]], patches: int, texts: list[str]) -> None:
        self.alive: dict[int, Tensor] = {}
        self.weights: dict[int, Tensor] = {}
        self.changes: dict[int, Tensor] = {}
        self.middle = {layer for (layer, *_), text in zip(answers, texts, strict=True) if "point=mid" in text}
        self.wholes: list[Tensor] = []
        rows = len(answers[0][1].kept)
        left = torch.arange(patches).expand(rows, -1)
        for number, (layer, selection, count) in enumerate(answers):
            change = torch.eye(patches).repeat(rows, 1, 1)
            alive = torch.zeros(rows, patches, dtype=torch.bool)
            for row in range(rows):
                kept = left[row, selection.kept[row]]
                change[row, kept] = 0
                change[row, kept[:, None], left[row]] = dense(selection, count, row)
                alive[row, kept] = True
            before = self.wholes[-1] if self.wholes else torch.eye(patches).expand(rows, -1, -1)
            self.wholes.append(change @ before * alive[..., None])
            self.alive[layer], self.changes[layer] = alive, change
            weighs = any("proportional=on" in text for text in texts[: number + 1])
            self.weights[layer] = (self.wholes[-1] != 0).sum(2).log() if weighs else torch.zeros(rows, patches)
            left = left.gather(1, selection.kept)

    @property
    def last(self) -> Tensor:
        """[R * patches] bool, alive behind the last stage."""
        return self.alive[max(self.alive)].flatten()

    def whole(self, stage: int) -> Tensor:
        """[R * patches, R * patches]."""
        return torch.block_diag(*self.wholes[stage])


def replays(case: Case, plan: str, asked: list[tuple[int, Selection, int]]) -> list[Replay]:
    """The calls of the encoder in one pass: of images, then of videos."""
    texts = [text for text in plan.split(" | ") if "site=vision" in text]
    stages, calls = len(texts), len(kinds_of(case))
    return [Replay(asked[stages * call : stages * (call + 1)], case.path.patches, texts) for call in range(calls)]


def kinds_of(case: Case) -> list[str]:
    return ["image"] + ["video"] * ("pixel_values_videos" in case.inputs)


@contextmanager
def hooked(*handles: Any) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def made_of(case: Case, kind: str, trace: Trace) -> list[Tensor]:
    """[grid tokens, R * patches] for each image or video of the call, learned from the model: the map behind its encoder."""
    names = ("pixel_values", "pixel_values_images") if kind == "image" else ("pixel_values_videos",)
    pixels = next(case.inputs[name] for name in names if name in case.inputs)
    rest = {name: case.inputs[name] for name in ("image_sizes", "batch_num_images") if name in case.inputs and kind == "image"}
    encode = case.model.model.get_image_features if kind == "image" else case.model.model.get_video_features
    shapes = [entry.medium.shape for entry in trace if entry.medium.shape.kind == kind]
    patches, start = sum(shape.encoder_rows for shape in shapes) * case.path.patches, [0]

    def one_hot(features: Tensor) -> Tensor:
        rows, tokens, width = features.shape
        hot = torch.zeros(patches, width)
        number = torch.arange(start[0], min(start[0] + width, patches))
        hot[number, number - start[0]] = 1
        start[0] += width
        return nn.functional.pad(hot.view(rows, -1, width), (0, 0, tokens - case.path.patches, 0))

    if kind == "video" and case.pooler is not None:
        handles = [
            case.pooler.register_forward_pre_hook(lambda _, args: (one_hot(args[0]),)),
            case.projector.register_forward_hook(lambda _, args, output: args[0]),
        ]
    else:
        handles = [case.projector.register_forward_hook(lambda _, args, output: one_hot(output))]
    columns: list[Tensor] = []
    with torch.no_grad(), hooked(*handles):
        while start[0] < patches:
            columns.append(flat(encode(pixels, **rest)))
    whole = torch.cat(columns, dim=-1)[:, :patches]
    if len(whole) == sum(shape.tokens for shape in shapes):
        whole = whole[torch.cat([on_grid(shape) for shape in shapes])]
    # Else separators are added later, as by LLaVA-OneVision to videos before transformers 5.23.
    return list(whole.split([shape.grid_tokens for shape in shapes]))


@contextmanager
def dense_encoder(case: Case, calls: list[Replay]) -> Iterator[None]:
    """The plain encoder at full length: merged states in place, dead keys masked, dead rows zero behind the projector.

    Blocks with a stage in their middle are run by their halves.

    Frames that are pooled in front of the projector are means of what lives there.
    """
    prefix, running = case.path.prefix, [-1]

    def next_call(*_: Any) -> None:
        running[0] = (running[0] + 1) % len(calls)

    def now() -> Replay:
        return calls[running[0]]

    def changed(index: int, hidden: Tensor) -> Tensor:
        return torch.cat([hidden[:, :prefix], now().changes[index] @ hidden[:, prefix:]], dim=1)

    def substitute(index: int) -> Any:
        def run(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            hidden = changed(index, args[0] if args else kwargs["hidden_states"])
            return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

        return run

    def halves(index: int) -> Any:
        def run(block: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            hidden = args[0] if args else kwargs["hidden_states"]
            hidden = hidden + block.self_attn(block.layer_norm1(hidden), attention_mask=None)[0]
            hidden = changed(index, hidden)
            hidden = hidden + block.mlp(block.layer_norm2(hidden))
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        return run

    def mask(index: int) -> Any:
        def run(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            layers = [layer for layer in now().alive if layer <= index]
            if not layers:
                return None
            alive, weights = now().alive[max(layers)], now().weights[max(layers)]
            seen = torch.where(alive, weights, torch.finfo(torch.float32).min)
            seen = nn.functional.pad(seen, (prefix, 0))[:, None, None]
            return args, {**kwargs, "attention_mask": seen.expand(-1, 1, seen.shape[-1], -1)}

        return run

    def zero(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        alive = now().last.view(len(output), -1)
        shown = output.shape[1] - alive.shape[1]  # the class token, or fewer tokens where frames were pooled
        return output if shown < 0 else output * nn.functional.pad(alive, (shown, 0), value=True)[..., None]

    def pool(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        rows, count, width = args[0].shape
        side, alive = round(count**0.5), now().last.view(len(output), -1, 1)
        both = torch.cat([args[0] * alive, alive.float()], dim=-1).transpose(1, 2).reshape(rows, width + 1, side, side)
        pooled = nn.functional.avg_pool2d(both, 2).flatten(2).transpose(1, 2)
        return torch.where(pooled[..., -1:] > 0, pooled[..., :-1] / pooled[..., -1:], 0.0)

    handles = [case.projector.register_forward_hook(zero)]
    if case.pooler is not None:
        handles.append(case.pooler.register_forward_hook(pool))
    for tower in case.towers:
        layers = compat.encoder_layers(tower)
        handles.append(tower.register_forward_pre_hook(next_call))
        for index in calls[0].changes:
            if index in calls[0].middle:
                handles.append(layers[index - 1].register_forward_hook(halves(index), with_kwargs=True))
            else:
                handles.append(layers[index].register_forward_pre_hook(substitute(index), with_kwargs=True))
        for index in range(min(calls[0].changes), len(layers)):
            attention = layers[index].get_submodule(case.path.attention)
            handles.append(attention.register_forward_pre_hook(mask(index), with_kwargs=True))
    with hooked(*handles):
        yield


@contextmanager
def divided(case: Case, by: Tensor) -> Iterator[None]:
    """What enters the language model divided by [B, S]; columns behind S are left alone."""

    def run(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        states = kwargs["inputs_embeds"]
        whole = nn.functional.pad(by, (0, states.shape[1] - by.shape[1]), value=1.0)
        return args, {**kwargs, "inputs_embeds": states / whole[..., None]}

    with hooked(tiny.decoder_of(case.model).register_forward_pre_hook(run, with_kwargs=True)):
        yield


def of_kind(trace: Trace, kind: str) -> list[MediumTrace]:
    return [entry for entry in trace if entry.medium.shape.kind == kind]


def layer_of(text: str) -> int:
    inside = "site=vision" in text or "site=pre_llm" in text
    return 0 if inside else int(text.partition("layer=")[2].partition(",")[0].rstrip(")"))


def alive_columns(case: Case, trace: Trace) -> dict[int, Tensor]:
    """{decoder layer: [B, S] bool} of what each stage left, those of the encoder at layer 0."""
    alive: dict[int, Tensor] = {}
    for number, (text, _) in enumerate(trace.media[0].stages):
        columns = torch.ones(case.inputs["input_ids"].shape, dtype=torch.bool)
        for entry in trace:
            gone = torch.ones(entry.medium.shape.grid_tokens, dtype=torch.bool)
            gone[entry.kept[number]] = False
            columns[entry.medium.row, entry.medium.columns[gone]] = False
        alive[layer_of(text)] = columns
    return alive


def merges_in_decoder(case: Case, trace: Trace) -> dict[int, Tensor]:
    """{layer: [B, S, S]} of the merges of the last stage, if it merges in front of a decoder layer."""
    text = trace.media[0].stages[-1][0]
    if "illava" not in text or "site=vision" in text:
        return {}
    change = torch.eye(case.inputs["input_ids"].shape[1]).repeat(len(case.inputs["input_ids"]), 1, 1)
    for record in trace._records:
        if record.stage == text:
            entry = trace.media[int(record.owner[0])]
            kept, arriving = (entry.medium.columns[entry.kept[at]] for at in (-1, -2))
            change[entry.medium.row, kept] = 0
            change[entry.medium.row, kept[:, None], arriving] = dense(record.selection, len(arriving), record.group)
    return {layer_of(text): change}


def half_up(numerator: int, denominator: int) -> int:
    return max(1, (2 * numerator + denominator) // (2 * denominator))


def check_kept(case: Case, entry: MediumTrace, matrix: Tensor, call: Replay, kept: Tensor) -> None:
    """Tokens that stay behind the encoder: all that something is left of; of shrunk grids the share with the most left."""
    patches, start = int(call.alive[max(call.alive)][0].sum()), 0
    for t, h, w in entry.medium.shape.pieces:
        own = matrix[start : start + t * h * w]
        covered = own @ call.last.float()
        stays = torch.zeros(len(own), dtype=torch.bool)
        stays[kept[(kept >= start) & (kept < start + len(own))] - start] = True
        if (own > WEIGHTS).sum(1).max() > 1:
            assert int(stays.sum()) == min(half_up(len(own) * patches, case.path.patches), int((covered > WEIGHTS).sum()))
            assert stays.all() or float(covered[stays].min()) >= float(covered[~stays].max()) - 1e-4
        else:
            assert torch.equal(stays, covered > WEIGHTS)
        start += len(own)
    assert start == len(matrix)


def told_in_tokens(matrix: Tensor, call: Replay, stage: int, kept: Tensor) -> Tensor:
    """[K, grid tokens] what kept tokens are made of: patches that a token shows are itself, others where they weigh most."""
    alive = call.alive[list(call.alive)[stage]].flatten()
    means = matrix[kept] * alive
    patches = means / means.sum(1, keepdim=True) @ call.whole(stage)  # [K, patches]
    told = torch.zeros(len(kept), len(matrix))
    for number, token in enumerate(kept.tolist()):
        for patch in torch.nonzero(patches[number]).flatten().tolist():
            if matrix[token, patch] > WEIGHTS:
                told[number, token] += patches[number, patch]
            elif (matrix[:, patch] > WEIGHTS).any():
                told[number, int(matrix[:, patch].argmax())] += patches[number, patch]
    return told
