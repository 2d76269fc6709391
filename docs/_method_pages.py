"""Pages of methods and recipes, from their files, from trying them, and from raw files of measurements."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, replace
from functools import cache
from inspect import cleandoc, getdoc, getmodule
from typing import TYPE_CHECKING, Any

from _measured import quality

if TYPE_CHECKING:
    from foveate.recipes import Recipe

COST_MODEL, COST_KEEP = "llava-1.5-7b", 0.5


@cache
def names() -> tuple[list[str], list[str]]:
    """Names of our methods and recipes, from their files."""
    from foveate import methods, recipes
    from foveate.core import registry

    return registry.file_names(methods), registry.file_names(recipes)


@cache
def capabilities() -> Mapping[str, Any]:
    """What each method did when it was tried at every site, by name."""
    from foveate.api.capabilities import method_capabilities

    return {row.name: row for row in method_capabilities(names()[0])}


def index_page() -> str:
    """All methods and recipes on one page."""
    lines = [
        "# Methods",
        "",
        "One page for each file in `foveate/methods` and `foveate/recipes`, made from the file when this site was built.",
        "",
        "| method | what it does | sites | effect | source |",
        "|---|---|---|---|---|",
    ]
    for name, row in capabilities().items():
        sites = ", ".join(row.sites)
        lines.append(f"| [{name}]({name}.md) | {row.summary} | {sites} | {row.effect} | {source_link(row.paper)} |")
    lines += ["", "## Recipes", "", "A recipe is a short text that expands to several stages.", ""]
    lines += ["| recipe | what it does |", "|---|---|"]
    for name in names()[1]:
        lines.append(f"| [{name}]({name}.md) | {summary(recipe_class(name))} |")
    return "\n".join(lines) + "\n"


def recipe_class(name: str) -> type[Recipe]:
    """The class of a recipe."""
    from foveate import recipes

    found: type[Recipe] = recipes.get(name)
    return found


def method_page(name: str) -> str:
    """The page of a method."""
    from foveate import methods

    cls = methods.get(name)
    row, method = capabilities()[name], cls()
    plans = list(usual_plans(method))
    parts = [f"# {name}", about(cls), "## How to write it", writing(plans, cls)]
    parts += ["## Options", options_table(cls)]
    needs = ", ".join(f"`{need}`" for need in method.needs()) or "nothing beyond what it is handed"
    published = cls.published or "no comparison by others is known to us"
    parts += [
        "## Where it acts",
        "\n".join(
            [
                f"- **Sites:** {', '.join(f'`{site}`' for site in row.sites)} ([what a site is](../concepts.md#glossary))",
                f"- **Tokens:** {', '.join(role.name.lower() for role in cls.roles)}",
                f"- **Effect:** {row.effect}{'; `effect=mask` works too' if row.masks else ''}",
                f"- **Looks at:** {row.looks_at}",
                f"- **Asks the engine to measure:** {needs}",
            ]
        ),
        "## What it costs",
        cost_table(plans),
        "## Measured quality",
        f"Published: {published}.",
        quality(name, [name]),
    ]
    return "\n\n".join(parts) + "\n"


def recipe_page(name: str) -> str:
    """The page of a recipe."""
    cls = recipe_class(name)
    plans = list(recipe_plans(name, cls))
    parts = [f"# {name}", about(cls), "## How to write it", writing(plans, cls)]
    parts += ["\n".join(f"- {note}" for note in cls.notes)] if cls.notes else []
    parts += ["## Options", options_table(cls), "## What it expands to"]
    parts.append("\n".join(f"- `{text}` becomes `{plan}`" for text, plan in plans) or "It needs files of its own.")
    used = sorted({stage.method.name for _, plan in plans for stage in plan.stages})
    if used:
        parts.append("Methods: " + ", ".join(f"[{method}]({method}.md)" for method in used) + ".")
    parts += ["## What it costs", cost_table(plans), "## Measured quality", quality(name, [name])]
    return "\n\n".join(parts) + "\n"


def about(cls: type) -> str:
    """What the docstrings of the class and of its file say."""
    module = cleandoc(getattr(getmodule(cls), "__doc__", "") or "")
    body = described(cls)[0]
    return f"**{linked(module.partition(chr(10))[0])}**\n\n{linked(body)}\n\n{linked(module.partition(chr(10))[2].strip())}"


def summary(cls: type) -> str:
    """The first line of a class's docstring."""
    return (getdoc(cls) or "").partition("\n")[0]


def linked(text: str) -> str:
    """Text with its arXiv numbers as links, and a line of its own for what differs."""
    text = re.sub(r"^Differs", "\n**Differs**", text, flags=re.MULTILINE)
    return re.sub(r"\barXiv[: ](\d{4}\.\d{5})(v\d+)?", r"[arXiv \1\2](https://arxiv.org/abs/\1\2)", text)


def source_link(paper: str) -> str:
    """Where a method comes from."""
    return linked(paper.strip())


def described(cls: type) -> tuple[str, dict[str, str]]:
    """The text of a class's docstring, and what it says of each attribute."""
    body, _, listed = cleandoc(cls.__doc__ or "").partition("\nAttributes:\n")
    found: dict[str, str] = {}
    for entry in re.split(r"\n(?=    \S)", "\n" + listed.rstrip()):
        words, colon, text = " ".join(entry.split()).partition(": ")
        if colon:
            found |= {word.strip(): text for word in words.split(",")}
    return body.strip(), found


def options_table(cls: type) -> str:
    """The fields of a dataclass, with what the docstrings of it and of its bases say of them."""
    said: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if base.__module__.startswith("foveate"):
            said |= described(base)[1]
    rows = ["| option | default | what it is |", "|---|---|---|"]
    for field in fields(cls):
        default = shown_default(field.default if field.default is not MISSING else None)
        rows.append(f"| `{field.name}` | {default} | {linked(said.get(field.name, '')).replace('|', chr(92) + '|')} |")
    if len(rows) == 2:
        rows = ["None of its own."]
    return "\n\n".join(["\n".join(rows), *stage_options(cls)])


def stage_options(cls: type) -> list[str]:
    """What a stage of a method takes besides."""
    from foveate.core.method import Method, StepMethod, TokenMethod

    if not issubclass(cls, Method):
        return []
    words = ["`layer`"] if issubclass(cls, StepMethod) else ["`layer` or `site`", "`scope`", "`effect`"]
    counts_itself = issubclass(cls, TokenMethod) and cls().fixed_count((1, 4, 4)) is not None
    if not counts_itself and getattr(cls, "takes_keep", True):
        words = ["`keep`", *words, "`rounding`"]
    return [f"Its stage also takes {', '.join(words)} ([plans as text](../plans.md))."]


def shown_default(value: Any) -> str:
    """A default as it is written in a plan."""
    if isinstance(value, bool):
        return "`on`" if value else "`off`"
    return "" if value in ("", (), None) else f"`{value}`"


def usual_plans(method: Any) -> Iterator[tuple[str, Any]]:
    """For each kind of site a method takes, a plan that fits the cost model, with its text."""
    import foveate
    from foveate.core.layout import Role
    from foveate.core.method import StepMethod, TokenMethod
    from foveate.core.site import LAYERED
    from foveate.errors import FoveateError

    if any(field.name == "path" for field in fields(method)):
        method = replace(method, path="demo")
    gates_itself = isinstance(method, StepMethod) and not method.takes_keep
    counts_itself = isinstance(method, TokenMethod) and method.fixed_count((1, 24, 24)) is not None
    keep = None if gates_itself or counts_itself else COST_KEEP
    for kind in method.sites:
        layer = {"vision": 12}.get(kind.value, 2) if kind in LAYERED else None
        budget = "threshold:0.5" if Role.INSTRUCT in method.roles else keep
        try:
            stage = method.at(layer, budget, site=kind.value)
        except FoveateError:
            continue
        yield str(stage), foveate.Plan((stage,))


def recipe_plans(name: str, cls: type) -> Iterator[tuple[str, Any]]:
    """The examples in a recipe's docstring that can be read; for one that needs files, the demo model's."""
    import foveate
    from foveate.errors import FoveateError

    examples = re.findall(rf"`({name}\([^`]*\))`", cleandoc(cls.__doc__ or ""))
    for text in [*examples, f"{name}(path=demo)"]:
        try:
            yield text, foveate.parse(text)
        except FoveateError:
            continue


def writing(plans: Sequence[tuple[str, Any]], cls: type) -> str:
    """The plans as text and in Python."""
    if not plans:
        return "See the options."
    lines = "\n".join(f'foveate.attach(model, "{text.replace(chr(34), chr(39))}")' for text, _ in plans)
    return f"```python\nimport foveate\n\n{lines}\n```\n\nIn Python the class is `foveate.{cls.__name__}`."


def cost_table(plans: Sequence[tuple[str, Any]]) -> str:
    """What `foveate.estimate` says of the plans."""
    import foveate
    from foveate.errors import FoveateError

    rows = [
        "| plan | visual tokens, mean of the layers | LLM prefill FLOPs | prefill FLOPs with the encoder | KV cache at the end "
        "| choosing the tokens |",
        "|---|---|---|---|---|---|",
    ]
    refused = []
    for text, plan in plans:
        try:
            cost = foveate.estimate(COST_MODEL, plan)
        except FoveateError as error:
            refused.append(f"`{text}` on {COST_MODEL}: {error}")
            continue
        before, after = (sum(counts) / len(counts) for counts in cost.visual_tokens_per_layer)
        shares = [ratio(part) for part in (cost.llm_prefill_flops, cost.prefill_flops, cost.kv_bytes)]
        cell = text.replace("|", r"\|")
        choosing = f"{cost.selection_flops / 1e6:,.1f} MFLOPs" if cost.selection_flops else "less than counted"
        rows.append(f"| `{cell}` | {before:.0f} -> {after:.0f} | {' | '.join(shares)} | {choosing} |")
    words = (
        f"Theory, by `foveate.estimate` on {COST_MODEL}: one image of 576 visual tokens, 64 text tokens, an answer of 128 "
        "tokens, as shares of the plain model's. What of it becomes time: [results](../results.md)."
    )
    table = [words, "\n".join(rows)] if len(rows) > 2 else ["Not computed."]
    if any("path=demo" in text for text, _ in plans):
        table.append("Choosing is counted with the demo model's small predictors; those of a 7B model are larger.")
    return "\n\n".join([*table, *refused])


def ratio(pair: Any) -> str:
    """A share of the plain model's."""
    return f"{pair.plan / pair.plain:.1%}".replace("%", " %")
