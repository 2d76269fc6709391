"""How a model is loaded and how it answers: options declared once for all commands, checked before anything is loaded."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from importlib.util import find_spec
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

from foveate.cli import options
from foveate.errors import InputError, MissingPackage, did_you_mean

DTYPES = {"auto": "auto", "bfloat16": "bfloat16", "float16": "float16", "float32": "float32"}
DTYPES |= {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
ATTENTION = ("eager", "sdpa", "flash_attention_2", "flex_attention")
_DEVICE = re.compile(r"auto|cpu|mps|(cuda|xpu)(:\d{1,3})?")
_MOST_PIXELS = 2**31


@dataclass(frozen=True)
class ModelSettings:
    """How a model and its processor are loaded."""

    dtype: Annotated[str, typer.Option(help="Of the weights: bfloat16, float16, float32, or auto (as stored).")] = "auto"
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps, or auto: the GPUs if there are any.")] = "auto"
    attn: Annotated[str | None, typer.Option(help=f"Attention: {', '.join(ATTENTION)}.")] = None
    load_in_4bit: Annotated[bool, typer.Option("--load-in-4bit", help="Quantized weights, by bitsandbytes.")] = False
    load_in_8bit: Annotated[bool, typer.Option("--load-in-8bit", help="Quantized weights, by bitsandbytes.")] = False
    min_pixels: Annotated[int | None, typer.Option(min=1, max=_MOST_PIXELS, help="Smaller pictures are enlarged to it.")] = None
    max_pixels: Annotated[int | None, typer.Option(min=1, max=_MOST_PIXELS, help="Larger pictures are shrunk to it.")] = None
    trust_remote_code: options.TrustRemoteCode = False

    def __post_init__(self) -> None:
        """Raise InputError or MissingPackage for what cannot be, in one line."""
        if self.dtype not in DTYPES:
            raise InputError(f"--dtype {self.dtype:.40} is not known." + did_you_mean(self.dtype[:40], DTYPES))
        if not _DEVICE.fullmatch(self.device):
            raise InputError(f"--device {self.device:.40} is not known: write auto, cpu, cuda, cuda:1 or mps")
        if self.attn is not None and self.attn not in ATTENTION:
            raise InputError(f"--attn {self.attn:.40} is not known." + did_you_mean(self.attn[:40], ATTENTION))
        if self.load_in_4bit and self.load_in_8bit:
            raise InputError("--load-in-4bit and --load-in-8bit contradict each other: give one of them")
        if self.quantized and find_spec("bitsandbytes") is None:
            raise MissingPackage(f"{self.quantized} needs bitsandbytes: pip install bitsandbytes")
        if self.min_pixels is not None and self.max_pixels is not None and self.min_pixels > self.max_pixels:
            raise InputError(f"--min-pixels {self.min_pixels} is more than --max-pixels {self.max_pixels}")

    @property
    def quantized(self) -> str:
        """The option that quantizes weights, "" without one."""
        return "--load-in-4bit" * self.load_in_4bit or "--load-in-8bit" * self.load_in_8bit

    def pretrained_options(self) -> dict[str, Any]:
        """What transformers' `from_pretrained` takes.

        Raises:
            InputError: for a device that this torch does not have.
        """
        import torch

        dtype = DTYPES[self.dtype]
        options: dict[str, Any] = {"dtype": dtype}
        if self.attn is not None:
            options["attn_implementation"] = self.attn
        if self.device != "auto":
            _check_device(self.device)
        if self.quantized and self.device != "auto":
            options["device_map"] = {"": self.device}
        elif self.device == "auto" and (torch.cuda.is_available() or self.quantized):
            options["device_map"] = "auto"
        if self.quantized:
            from transformers import BitsAndBytesConfig

            bits: dict[str, Any] = {self.quantized.strip("-").replace("-", "_"): True}
            if self.load_in_4bit and dtype != "auto":
                bits["bnb_4bit_compute_dtype"] = dtype
            options["quantization_config"] = BitsAndBytesConfig(**bits)
        return options

    def placed(self, model: Any) -> Any:
        """A loaded model, on the device that was asked for."""
        return model if self.device == "auto" or self.quantized else model.to(self.device)

    def set_pixels(self, processor: Any) -> None:
        """Set the pixel bounds of a processor that has some.

        Raises:
            InputError: for one that has none; says what its pictures become.
        """
        if self.min_pixels is None and self.max_pixels is None:
            return
        rules = getattr(processor, "image_processor", None)
        if rules is None:
            raise InputError("--min-pixels, --max-pixels: a plain language model takes no pictures; leave them out")
        size = getattr(rules, "size", None)
        size = {} if size is None else dict(size)
        least, most = size.get("shortest_edge"), size.get("longest_edge")
        # Processors of packed encoders keep least and most pixels in the fields that are edges elsewhere.
        if not hasattr(rules, "merge_size") or least is None or most is None:
            known = ", ".join(f"{name}={value}" for name, value in size.items() if value is not None) or "a size of its own"
            option = "--min-pixels" if self.max_pixels is None else "--max-pixels"
            raise InputError(f"{option}: {type(rules).__name__} has no bounds in pixels, it brings pictures to {known}")
        # A bound that was not given moves with one that passes it.
        least = self.min_pixels or min(least, self.max_pixels or least)
        rules.size = {"shortest_edge": least, "longest_edge": self.max_pixels or max(most, least)}


@dataclass(frozen=True)
class Decoding:
    """How an answer is chosen; greedily if nothing is said."""

    temperature: Annotated[float, typer.Option(help="Above 0 answers are drawn; 0 takes the likeliest token.")] = 0.0
    top_p: Annotated[float | None, typer.Option(help="Draw among the likeliest tokens that make up this share.")] = None
    beams: Annotated[int, typer.Option(min=1, max=64, help="Search with so many beams.")] = 1
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of drawn answers; each plan starts from it.")] = 0

    def __post_init__(self) -> None:
        """Raise InputError for what cannot be, in one line."""
        if not (math.isfinite(self.temperature) and 0 <= self.temperature <= 100):
            raise InputError(f"--temperature {self.temperature:g}: write 0 for the likeliest answer, or up to 100")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise InputError(f"--top-p {self.top_p:g}: write a share above 0, at most 1")

    @property
    def draws(self) -> bool:
        """Whether answers are drawn."""
        return self.temperature > 0 or self.top_p is not None

    def options(self) -> dict[str, Any]:
        """What `compare` and `generate` take."""
        options: dict[str, Any] = {} if self.beams == 1 else {"num_beams": self.beams}
        if self.draws:
            options |= {"do_sample": True, "temperature": self.temperature or 1.0, "top_k": 0, "top_p": self.top_p or 1.0}
        return options


DEFAULTS, GREEDY = ModelSettings(), Decoding()


def _check_device(device: str) -> None:
    import torch

    kind, _, number = device.partition(":")
    there = {"cuda": torch.cuda, "xpu": torch.xpu, "mps": torch.mps}.get(kind)
    count = 1 if there is None else there.device_count()
    if int(number or 0) >= count:
        known = f"it sees {count} of them" if count else f"this torch sees no {kind} device"
        raise InputError(f"--device {device}: {known}; write cpu, or another one")


_Result = TypeVar("_Result")


def spread(command: Callable[..., _Result]) -> Callable[..., _Result]:
    """A command whose parameters of a settings class became one option for each field of it."""
    hints = get_type_hints(command, include_extras=True)
    parameters: list[inspect.Parameter] = []
    groups: dict[str, tuple[Any, list[str]]] = {}
    for name, parameter in inspect.signature(command).parameters.items():
        kind = hints[name]
        if not is_dataclass(kind):
            parameters.append(parameter.replace(annotation=kind))
            continue
        own = get_type_hints(kind, include_extras=True)
        groups[name] = kind, [field.name for field in fields(kind)]
        parameters += [
            inspect.Parameter(field.name, parameter.KEYWORD_ONLY, default=field.default, annotation=own[field.name])
            for field in fields(kind)
        ]

    def run(**given: Any) -> _Result:
        for name, (kind, names) in groups.items():
            given[name] = kind(**{own: given.pop(own) for own in names if own in given})
        return command(**given)

    run.__name__, run.__doc__, run.__module__ = command.__name__, command.__doc__, command.__module__
    ordered = sorted(parameters, key=lambda parameter: parameter.kind)
    run.__signature__ = inspect.Signature(ordered)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in ordered}
    return run
