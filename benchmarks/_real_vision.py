"""What merging does inside a pretrained vision encoder: photographs that packages ship, and rendered objects."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.merging import METHODS as COMPARED
from benchmarks.merging import errors, features
from foveate.demo.drawing import render
from foveate.demo.pictures import Scene
from foveate.demo.scenes import make_dense_scene
from real_weights.models import joined_config, pixel_values, vision

SIDE, PATCH, LAYER, SEED = 224, 14, 6, 3
KEEPS = (0.5, 0.25)
METHODS = {**COMPARED, "uniform": "uniform({place}, keep={keep})"}
# By the package that ships them. Photographs only: no drawings, micrographs or test charts.
PHOTOGRAPHS = {
    "scikit-image": ("skimage/data", (
        "astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png", "coins.png", "grass.png", "gravel.png",
        "hubble_deep_field.jpg", "moon.png", "motorcycle_left.png", "rocket.jpg",
    )),
    "scikit-learn": ("sklearn/datasets/images", ("china.jpg", "flower.jpg")),
    "matplotlib": ("matplotlib/mpl-data/sample_data", ("grace_hopper.jpg",)),
}  # fmt: skip
TRAIN, TEST = 80, 110  # scenes


def encoder() -> Any:
    """The vision encoder in an InternVL with the smallest language model; each of 16 x 16 patches is a visual token."""
    from transformers import InternVLForConditionalGeneration, LlamaConfig

    tower = vision(SIDE)
    text = LlamaConfig(
        vocab_size=100, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(SEED)
    model = InternVLForConditionalGeneration(joined_config(text, tower.config, 90, shuffle=1)).eval()
    model.model.vision_tower.load_state_dict(tower.state_dict())
    return model


def plans() -> dict[tuple[str, float], str]:
    """Every method at every share, before the middle of the encoder."""
    place = f"site=vision, layer={LAYER}"
    return {(name, keep): text.format(place=place, keep=keep) for keep in KEEPS for name, text in METHODS.items()}


def photographs() -> dict[str, list[Image.Image]]:
    """Two views of each, by name: the largest square in its middle, and the middle half of that."""
    found = {}
    for package, (folder, names) in PHOTOGRAPHS.items():
        for name in names:
            with Image.open(Path(str(distribution(package).locate_file(f"{folder}/{name}")))) as image:
                picture = image.convert("RGB")
            found[f"{package}: {name}"] = [_middle(picture, 1.0), _middle(picture, 0.5)]
    return found


def _middle(picture: Image.Image, share: float) -> Image.Image:
    side = round(min(picture.size) * share)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    return picture.crop((left, top, left + side, top + side))


def photograph_errors(model: Any, note: Callable[[str], None]) -> list[dict[str, Any]]:
    """Both errors of `benchmarks.merging` for each photograph, the mean of its views, by method and share."""
    pictures = photographs()
    pixels = [pixel_values(views, SIDE) for views in pictures.values()]
    plain = [features(model, values, "none")[0] for values in pixels]
    rows = []
    for (name, keep), plan in plans().items():
        found: dict[str, list[float]] = {"own": [], "coverage": []}
        for values, before in zip(pixels, plain, strict=True):
            for kind, each in errors(before, *features(model, values, plan)).items():
                found[kind].append(round(float(np.mean(each)), 5))
        rows.append({"method": name, "keep": keep, "plan": plan, "photographs": list(pictures), "errors": found})
        note(f"photographs {name} {keep}")
    return rows


@dataclass(frozen=True)
class Place:
    """An object of a picture: its shape and colour, and which patches it covers, as [16 * 16] bool."""

    shape: str
    color: str
    covered: Tensor
    centre: tuple[float, float]


def scenes(split: Any, count: int) -> list[tuple[Image.Image, list[Place]]]:
    """Crowded pictures and their objects."""
    found = []
    for index in range(count):
        scene = make_dense_scene(split, SEED, index)
        picture = render(scene)
        found.append((picture, _places(scene, SIDE / picture.width / PATCH)))
    return found


def _places(scene: Scene, scale: float) -> list[Place]:
    side = SIDE // PATCH
    grid = torch.arange(side) + 0.5  # middles of the patches
    places = []
    for item in scene.objects:
        x, y, radius = (value * scale for value in (item.x, item.y, item.radius))
        near = ((grid - y).abs() < radius)[:, None] & ((grid - x).abs() < radius)[None]
        places.append(Place(item.shape, item.color, near.flatten(), (x, y)))
    return places


def read_out(given: Tensor, kept: Tensor, place: Place) -> Tensor:
    """[D] what is left at an object's place: the mean of the survivors on it, or the survivor next to it.

    Args:
        given: [N, D] features in raster order; those of survivors count.
        kept: [K] long, the survivors.
    """
    on = kept[place.covered[kept]]
    if len(on):
        return given[on].mean(0)
    side = SIDE // PATCH
    middle = torch.stack([kept % side, kept // side], 1) + 0.5
    return given[kept[(middle - torch.tensor(place.centre)).square().sum(1).argmin()]]


def read_objects(model: Any, shown: Sequence[tuple[Image.Image, list[Place]]], plan: str, batch: int = 5) -> Tensor:
    """[objects, D] of all pictures in order."""
    rows = []
    for start in range(0, len(shown), batch):
        part = shown[start : start + batch]
        given, kept = features(model, pixel_values([picture for picture, _ in part], SIDE), plan)
        for own, index, (_, places) in zip(given, kept, part, strict=True):
            rows += [read_out(own, index, place) for place in places]
    return torch.stack(rows)


class Probe:
    """A linear classifier of whitened features, fitted to plain ones: softmax regression with weight decay, to its optimum."""

    def __init__(self, rows: Tensor, names: Sequence[str], decay: float = 1e-2) -> None:
        self.names = sorted(set(names))
        self.mean, self.std = rows.mean(0), rows.std(0) + 1e-6
        wanted = torch.tensor([self.names.index(name) for name in names])
        self.weight = torch.zeros(rows.shape[1] + 1, len(self.names), requires_grad=True)
        search = torch.optim.LBFGS([self.weight], max_iter=300, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            search.zero_grad()
            value = torch.nn.functional.cross_entropy(self._scores(rows), wanted) + decay * self.weight.square().sum() / 2
            value.backward()  # type: ignore[no-untyped-call]
            return value

        search.step(loss)  # type: ignore[no-untyped-call]

    def _scores(self, rows: Tensor) -> Tensor:
        return torch.cat([(rows - self.mean) / self.std, torch.ones(len(rows), 1)], 1) @ self.weight

    def right(self, rows: Tensor, names: Sequence[str]) -> list[bool]:
        """Which rows it names as they are called."""
        with torch.no_grad():
            return [self.names[number] == name for number, name in zip(self._scores(rows).argmax(1), names, strict=True)]


def probe_rows(model: Any, known: Collection[str], train: int = TRAIN, test: int = TEST) -> Iterator[dict[str, Any]]:
    """Shape and colour of every held-out object: read from plain features, and from those under each plan by the same probe.

    Args:
        model: as `encoder` makes it.
        known: plans that were measured already.
        train, test: numbers of scenes.
    """
    from benchmarks._study import marks

    learned, asked = scenes("train", train), scenes("test", test)
    seen = [place for _, places in learned for place in places]
    wanted = [place for _, places in asked for place in places]
    before = read_objects(model, learned, "none")
    probes = {kind: Probe(before, [getattr(place, kind) for place in seen]) for kind in ("shape", "color")}
    for (name, keep), plan in {("plain", 1.0): "none", **plans()}.items():
        if plan in known:
            continue
        found = read_objects(model, asked, plan)
        right = {
            kind: marks(np.array(probe.right(found, [getattr(p, kind) for p in wanted]))) for kind, probe in probes.items()
        }
        yield {"method": name, "keep": keep, "plan": plan, "right": right, "trained_on": len(seen)}
