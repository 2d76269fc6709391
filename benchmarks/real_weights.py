"""Gates, the attention sink and merging on pretrained weights, which no demo model stands in for.

    python -m real_weights fetch
    pip install scikit-image scikit-learn  # for their photographs
    python -m benchmarks.real_weights language --out benchmarks/results/NAME.json
    python -m benchmarks.real_weights vision --out benchmarks/results/OTHER.json
    python -m benchmarks.real_weights page benchmarks/results/NAME.json benchmarks/results/OTHER.json --out docs/real_weights.md

`page` without --out prints every number of the page. Both studies can be stopped and repeated: what a file holds already is
not measured again. `--smoke` takes a few texts or pictures.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks import _real_language, _real_vision
from benchmarks._real_page import page_of
from benchmarks._results import header, write_results
from benchmarks._study import resumed
from real_weights.fetching import PACKAGES
from real_weights.models import together

# The sink is measured behind texts; a picture of 112 pixels adds 16 visual tokens, as few as there can be.
SINK_SIDE = 112


def _report(what: str, out: Path) -> dict[str, Any]:
    import torch

    weights = {f"{package.name} {package.version}": package.sha256 for package in PACKAGES}
    new = {**header("real_weights", what, torch.device("cpu")), "dtype": "float32", "weights": weights}
    return resumed(out, new, ("benchmark", "what", "versions", "weights"))


def language(out: Path, count: int | None) -> None:
    """The sink, then losses of every passage under every plan."""
    report = _report("a pretrained language model: perplexity under gates, attention on the first token", out)
    model, tokenizer = together(SINK_SIDE)
    rounds = _real_language.passages(tokenizer, count)
    report["texts"], rows = list(rounds), report.setdefault("rows", [])
    if "sinks" not in report:
        report["sinks"] = _real_language.sinks(model, tokenizer, count or _real_language.SINK_TEXTS)
    for name, plan in _real_language.plans().items():
        if name not in {row["name"] for row in rows}:
            rows.append({"name": name, "plan": plan, **_real_language.readings(model, rounds, plan)})
            write_results(out, report)
            print(f"{name:60s} loss {sum(rows[-1]['loss']) / len(rounds):.3f}", flush=True)
    write_results(out, report | {"complete": True})


def vision(out: Path, small: bool) -> None:
    """Errors on photographs, then what a probe reads of rendered objects."""
    report = _report("a pretrained vision encoder: merging inside it, photographs and rendered objects", out)
    model = _real_vision.encoder()
    if "photographs" not in report:
        report["photographs"] = _real_vision.photograph_errors(model, _say)
        write_results(out, report)
    rows = report.setdefault("objects", [])
    counts = {"train": 8, "test": 4} if small else {}
    for row in _real_vision.probe_rows(model, [row["plan"] for row in rows], **counts):
        rows.append(row)
        write_results(out, report)
        _say(f"objects {row['method']} {row['keep']}: " + ", ".join(_share(kind, text) for kind, text in row["right"].items()))
    write_results(out, report | {"complete": True})


def _share(kind: str, right: str) -> str:
    return f"{kind} {right.count('1') / len(right):.3f}"


def _say(line: str) -> None:
    print(line, flush=True)


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("language", "vision"):
        measure = commands.add_parser(name)
        measure.add_argument("--out", type=Path, required=True)
        measure.add_argument("--smoke", action="store_true", help="a few texts or pictures")
    page = commands.add_parser("page")
    page.add_argument("language", type=Path)
    page.add_argument("vision", type=Path)
    page.add_argument("--out", type=Path, default=None, help="printed if left out")
    options = parser.parse_args(arguments)
    if options.command == "language":
        language(options.out, 2 if options.smoke else None)
    elif options.command == "vision":
        vision(options.out, options.smoke)
    else:
        reports = [json.loads(path.read_text(encoding="utf-8")) for path in (options.language, options.vision)]
        text = page_of(*reports, options.language.as_posix(), options.vision.as_posix())
        if options.out is None:
            sys.stdout.write(text)
        else:
            options.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
