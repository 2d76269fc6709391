"""Checkpoints of any size, read and written one tensor at a time.

Only the safetensors format is read: its files hold numbers and nothing that could run. The format's own library writes a file
from tensors that are all in memory, so the file is laid out here: 8 bytes with the length of a JSON header, the header with
type, shape and place of each tensor, then their bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from foveate.errors import InputError
from foveate.files.reading import open_regular, read_json

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
PICKLED = ("*.bin", "*.pt", "*.pth", "*.pkl")


@dataclass(frozen=True)
class Entry:
    """One tensor of a checkpoint, as a file's header describes it."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of its numbers."""
        return prod(self.shape) * DTYPES[self.dtype].itemsize


class Checkpoint:
    """The weights in the files STEM*.safetensors of a folder: headers at first, a tensor when it is asked for.

    Attributes:
        entries: all tensors, by name.

    Raises:
        InputError: if there are no safetensors files, one is missing or broken, or a tensor is not of 16 or 32 bit floats.
    """

    def __init__(self, folder: Path, stem: str = "model") -> None:
        self.entries: dict[str, Entry] = {}
        self._files: dict[str, Path] = {}
        files = sorted(folder.glob(f"{stem}*.safetensors"))
        if not files:
            raise _no_weights(folder, stem)
        for file in files:
            self._read_header(file)
        self._check_index(folder / f"{stem}.safetensors.index.json")

    def read(self, name: str) -> Tensor:
        """One tensor, on the CPU."""
        try:
            with safe_open(self._files[name], framework="pt") as file:
                tensor: Tensor = file.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise InputError(f"{self._files[name]} cannot be read: {error}") from None
        if not bool(tensor.isfinite().all()):
            raise InputError(f"{self._files[name]}: {name} holds numbers that are not finite: download it again")
        return tensor

    def _read_header(self, path: Path) -> None:
        open_regular(path, what="file of weights").close()
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (not a dict)
                    part = file.get_slice(name)
                    entry = Entry(name, part.get_dtype(), tuple(part.get_shape()))
                    if entry.dtype not in DTYPES:
                        raise InputError(
                            f"{path}: {name} is stored as {entry.dtype}; convert a checkpoint of 16 or 32 bit floats"
                        )
                    if name in self.entries:
                        raise InputError(
                            f"{name} is in {self._files[name].name} and in {path.name}: keep one checkpoint per folder"
                        )
                    self.entries[name], self._files[name] = entry, path
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path} cannot be read ({error}): download it again") from None

    def _check_index(self, path: Path) -> None:
        if not path.is_file():
            return
        found = read_json(path)
        listed = found.get("weight_map") if isinstance(found, dict) else None
        if not isinstance(listed, dict) or not all(isinstance(file, str) for file in listed.values()):
            raise InputError(f"{path} is not an index of weights: download it again")
        outside = sorted({file for file in listed.values() if Path(file).name != file})
        if outside:
            raise InputError(f"{path} names {outside[0]}, which is no file beside it: download it again")
        lost = sorted({file for name, file in listed.items() if name not in self.entries})
        if lost:
            raise InputError(f"{path.parent} lacks weights of {', '.join(lost)}: download the missing files")


def write_checkpoint(
    folder: Path, entries: Iterable[Entry], read: Callable[[str], Tensor], most_bytes: int | None, stem: str = "model"
) -> list[Path]:
    """Write tensors in files of at most `most_bytes` (or one tensor), with an index if there are several.

    Args:
        entries: what is written.
        read: gives the tensor of a name; it is called once for each, and the tensor is let go before the next.
        most_bytes: None for one file.
        stem: the files are STEM.safetensors, or STEM-00001-of-00002.safetensors and so on.
    """
    shards = _shards(entries, most_bytes)
    total = len(shards)
    names = [f"{stem}-{n:05d}-of-{total:05d}.safetensors" if total > 1 else f"{stem}.safetensors" for n in range(1, total + 1)]
    for name, shard in zip(names, shards, strict=True):
        _write_file(folder / name, shard, read)
    if total > 1:
        size = sum(entry.size_bytes for shard in shards for entry in shard)
        where = {entry.name: name for name, shard in zip(names, shards, strict=True) for entry in shard}
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(where.items()))}
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return [folder / name for name in names]


def _shards(entries: Iterable[Entry], most_bytes: int | None) -> list[list[Entry]]:
    shards: list[list[Entry]] = [[]]
    held = 0
    for entry in entries:
        if most_bytes is not None and shards[-1] and held + entry.size_bytes > most_bytes:
            shards.append([])
            held = 0
        shards[-1].append(entry)
        held += entry.size_bytes
    return shards


def _write_file(path: Path, entries: Sequence[Entry], read: Callable[[str], Tensor]) -> None:
    entries = sorted(entries, key=lambda entry: -DTYPES[entry.dtype].itemsize)  # wide numbers first, so that all are aligned
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for entry in entries:
        begin, end = end, end + entry.size_bytes
        header[entry.name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": (begin, end)}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for entry in entries:
            file.write(_numbers(read(entry.name), entry))


def _numbers(tensor: Tensor, entry: Entry) -> memoryview:
    """The tensor's bytes, without a copy."""
    assert tensor.dtype is DTYPES[entry.dtype] and tuple(tensor.shape) == entry.shape
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def _no_weights(folder: Path, stem: str) -> InputError:
    pickled = next((path.name for pattern in PICKLED for path in sorted(folder.glob(pattern))), None)
    if pickled is None:
        return InputError(f"{folder} holds no {stem}*.safetensors: give the folder of a checkpoint")
    return InputError(
        f"{folder} holds pickled files such as {pickled}, which can run code when they are read, and no {stem}*.safetensors: "
        "have whoever made it save it with save_pretrained(..., safe_serialization=True)"
    )
