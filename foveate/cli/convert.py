"""foveate convert: checkpoints of other programs, made into Hugging Face models with predictors, and back."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from foveate.cli import tables
from foveate.errors import InputError

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}

app = typer.Typer(help="Convert checkpoints of other programs.", no_args_is_help=True)


@app.callback()
def convert() -> None:
    """Keep `dynamic-llava` a command of its own: typer merges a single command into its group."""


@app.command("dynamic-llava")
def dynamic_llava(
    source: Annotated[str, typer.Argument(metavar="SRC", help="Folder or hub id, e.g. Osilly/Dynamic-LLaVA-7B.")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="Folder to make.")],
    reverse: Annotated[bool, typer.Option("--reverse", help="From a Hugging Face folder to the official layout.")] = False,
    predictors: Annotated[
        str | None, typer.Option(help="With --reverse: folder of the predictors; SRC/predictors if left out.")
    ] = None,
    max_shard_size: Annotated[str, typer.Option(help="Largest file of weights, e.g. 5GB or 500MB.")] = "5GB",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a model that is at DST.")] = False,
) -> None:
    """Make a Hugging Face LLaVA folder with predictors from an official Dynamic-LLaVA checkpoint, one tensor at a time."""
    most_bytes = _bytes(max_shard_size)
    if predictors is not None and not reverse:
        raise InputError("--predictors belongs to --reverse: an official checkpoint holds its own")
    from foveate.convert import convert_dynamic_llava, restore_dynamic_llava

    console = tables.make_console()
    with console.status("converting"):
        if reverse:
            made = restore_dynamic_llava(
                source, target, predictors=predictors or "", overwrite=overwrite, most_bytes=most_bytes
            )
        else:
            made = convert_dynamic_llava(source, target, overwrite=overwrite, most_bytes=most_bytes)
    kept = f"{made.predictors.keep:.0%} of a picture"
    if made.predictors.text_keep is not None:
        kept += f", {made.predictors.text_keep:.0%} of an answer"
    console.print(
        f"wrote {target}: {made.size_bytes / 1e9:.2f} GB in {len(made.files)} file{'s'[: len(made.files) > 1]}, predictors "
        f"in front of layer {made.predictors.layer} that keep {kept}",
        soft_wrap=True,
        highlight=False,
    )
    if reverse:
        if not (target / "tokenizer.model").is_file():
            console.print("copy Vicuna's tokenizer.model into it: the source has none", soft_wrap=True, highlight=False)
        return
    plan = f"dynamic_llava(path='{target}/predictors')"
    console.print(f'foveate run photo.jpg "What is this?" --model {target} --plan "{plan}"', soft_wrap=True, highlight=False)
    console.print(f'in Python: foveate.attach(model, "{plan}")', soft_wrap=True, highlight=False)


def _bytes(text: str) -> int:
    """`500MB` -> 500,000,000."""
    found = re.fullmatch(r"([0-9]{1,12}(?:\.[0-9]{1,12})?)\s*([A-Za-z]*)", text.strip())
    size = round(float(found[1]) * _UNITS[found[2].upper()]) if found and found[2].upper() in _UNITS else 0
    if size < 1:
        raise InputError(f"--max-shard-size '{text}': write e.g. 5GB or 500MB")
    return size
