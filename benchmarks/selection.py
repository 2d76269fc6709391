"""What choosing costs: the time of every selector against visual tokens and share kept, beside the plain time to first token.

    python -m benchmarks.selection run --out benchmarks/results/NAME.json
    python -m benchmarks.selection page benchmarks/results/NAME.json --out docs/selection_speed.md

Only the choice is timed: a method is handed states [1, N, D] of a random picture and what it asks for (attention rows, encoder
keys, the question), all random. Methods take turns; numbers are medians of wall time. The plain time to first token is of a
random-weight LLaVA of about 100M parameters without its encoder, at as many visual tokens, in turns in the same process.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks import _models as models
from benchmarks._results import write_results
from benchmarks._timing import timed, turns
from foveate import methods
from foveate.core.layout import Role
from foveate.core.learned import LearnedMethod
from foveate.core.method import TokenMethod
from foveate.core.site import SiteKind
from foveate.core.view import Observation, TokenView
from foveate.demo.evaluation import versions

MODEL = "llava-100m-bare"
TOKENS, KEEPS, QUESTION, HEADS = (576, 1440, 2880), (0.5, 0.25, 0.1), 20, 12
PARTS, GOAL = 4, 0.02  # of the plain time to first token, at the most tokens and the smallest share


def selectors() -> dict[str, TokenMethod]:
    """Methods that choose among visual tokens of the decoder by what they are shown, without training; in parts too."""
    found = {}
    for method in (methods.get(name) for name in methods.names() if _selects(methods.get(name))):
        found[method.examples()[0].name] = method.examples()[0]
        if any(option.name == "split" for option in fields(method)):
            found[f"{method.examples()[0].name}(split={PARTS})"] = replace(method.examples()[0], split=PARTS)
    return found


def _selects(method: type[Any]) -> bool:
    if not issubclass(method, TokenMethod) or issubclass(method, LearnedMethod) or Role.VISUAL not in method.roles:
        return False
    decoder = {SiteKind.PRE_LLM, SiteKind.LLM_LAYER} & {*method.sites}
    return bool(decoder) and method.examples()[0].fixed_count((1, 2, 2)) is None


def view(method: TokenMethod, tokens: int, width: int, random: torch.Generator) -> TokenView:
    """One picture of about as many tokens as asked for, and random values of everything that a method asks for."""
    side = int(tokens**0.5)
    while tokens % side:
        side -= 1
    down, across = torch.meshgrid(torch.arange(side), torch.arange(tokens // side), indexing="ij")
    coords = torch.stack([torch.zeros(tokens, dtype=torch.long), down.flatten(), across.flatten()], dim=1)[None]
    lengths = {"G": 1, "N": tokens, "H": HEADS, "M": QUESTION, "D": width}

    def observed(need: Observation) -> torch.Tensor:
        return torch.rand([lengths[axis] for axis in need.axes], generator=random)

    return TokenView(
        features=torch.randn(1, tokens, width, generator=random),
        coords=coords,
        grid=(1, side, tokens // side),
        sizes=torch.ones(1, tokens),
        group_keys=(0,),
        observed={need: observed(need) for need in method.needs()},
    )


def in_turns(calls: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Wall time in milliseconds of each call, in turns."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _, names in turns(list(calls), repeats):
        for name in names:
            found[name].append(timed(calls[name])[0].wall)
    return found


def measure(tokens: int, repeats: int, name: str = MODEL) -> dict[str, Any]:
    """The plain time to first token, and each selector's time at every share."""
    cpu, dtype = torch.device("cpu"), torch.float32
    prompt = models.prompt_for(name, tokens)
    model = models.build(prompt.config, cpu, dtype, "sdpa")
    inputs = models.inputs_for(prompt, 1, cpu, dtype)
    width, random = model.config.get_text_config().hidden_size, torch.Generator().manual_seed(0)
    calls: dict[str, Callable[[], Any]] = {"plain": lambda: model(**inputs, use_cache=True, logits_to_keep=1)}
    for name, method in selectors().items():
        shown = view(method, tokens, width, random)
        calls |= {f"{name} {keep}": partial(method.select, shown, round(keep * tokens)) for keep in KEEPS}
    with torch.inference_mode():
        in_turns(calls, 1)
        times = in_turns(calls, repeats)
    plain = median(times.pop("plain"))
    rows = [
        {
            "method": name.split()[0],
            "keep": float(name.split()[1]),
            "ms": median(own),
            "share": median(own) / plain,
            "raw_ms": own,
        }
        for name, own in times.items()
    ]
    return {"visual_tokens": tokens, "width": width, "plain_ms": plain, "rows": rows}


PAGE = """# What choosing costs

Time to choose, as a share of the plain time to first token of a 100M-parameter LLaVA without its encoder on a CPU with
{threads} threads ({plain} visual tokens). Medians of methods that take turns in one process; measuring what a method asks for
is not in it. On a large model shares are smaller: its time grows, the choice hardly does. Goal: at most {goal:.0%} at the most
tokens, a tenth kept; methods above it have `split=`, which chooses within every n-th token at a time. Raw numbers: `{source}`;
`python -m benchmarks.selection run` measures them again.

| method | {heads} |
|---{rules}|
{lines}
"""


def write_page(result: Mapping[str, Any], source: Path, out: Path) -> None:
    """The table of shares, the cheapest method first."""
    runs = result["runs"]
    columns = [(one["visual_tokens"], keep) for one in runs for keep in KEEPS]
    cells = {(one["visual_tokens"], row["keep"], row["method"]): row for one in runs for row in one["rows"]}
    names = sorted({row["method"] for row in runs[-1]["rows"]}, key=lambda name: float(cells[(*columns[-1], name)]["share"]))
    lines = []
    for name in names:
        rows = [cells[(*column, name)] for column in columns]
        lines.append(f"| `{name}` | " + " | ".join(f"{100 * row['share']:.1f} % ({row['ms']:,.1f} ms)" for row in rows) + " |")
    text = PAGE.format(
        threads=result["threads"],
        plain=", ".join(f"{one['plain_ms']:,.0f} ms at {one['visual_tokens']:,}" for one in runs),
        goal=GOAL,
        source=source.as_posix(),
        heads=" | ".join(f"{tokens:,} keep {keep:g}" for tokens, keep in columns),
        rules="|---:" * len(columns),
        lines="\n".join(lines),
    )
    out.write_text(text, encoding="utf-8")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run")
    run.add_argument("--repeats", type=int, default=7)
    run.add_argument("--tokens", type=int, nargs="+", default=list(TOKENS))
    run.add_argument("--threads", type=int, default=2)
    run.add_argument("--out", type=Path, required=True)
    page = commands.add_parser("page")
    page.add_argument("results", type=Path)
    page.add_argument("--out", type=Path, default=Path("docs/selection_speed.md"))
    options = parser.parse_args()
    if options.command == "page":
        write_page(json.loads(options.results.read_text(encoding="utf-8")), options.results, options.out)
        return
    if options.out.exists():
        parser.error(f"{options.out} exists: results are never overwritten, choose another name")
    torch.set_num_threads(options.threads)
    runs = [measure(tokens, options.repeats) for tokens in options.tokens]
    result = {"what": "time to choose visual tokens, medians", "threads": options.threads, "runs": runs, "versions": versions()}
    write_results(options.out, result)
    for row in sorted(runs[-1]["rows"], key=lambda row: row["share"]):
        print(f"{row['method']:14s} keep {row['keep']:<5g} {row['ms']:9.1f} ms  {100 * row['share']:6.2f} %")


if __name__ == "__main__":
    main()
