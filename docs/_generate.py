"""The pages that are made when the site is built: nothing here lists a method, so a new file gets its page by itself.

A hook of mkdocs (`mkdocs.yml`, `hooks:`). It makes a page of every method and recipe, of the notebooks in `guides/`, of the
command line and of the Python names, puts the raw files of measurements beside the pages, and links to them.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

sys.path.insert(0, str(Path(__file__).parent))  # mkdocs loads this file alone

from _measured import RESULTS
from _method_pages import index_page, method_page, names, recipe_page

ROOT = Path(__file__).parent.parent
# Pages that live elsewhere in the repository, by their address on the site.
OUTSIDE = {
    "changelog.md": ROOT / "CHANGELOG.md",
    "contributing.md": ROOT / "CONTRIBUTING.md",
    "demo_model.md": ROOT / "foveate" / "demo" / "assets" / "model" / "README.md",
}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the pages of methods and recipes into the navigation."""
    methods, recipes = names()
    for entry in config.nav or []:
        if "Methods" in entry:
            entry["Methods"] = [
                "methods/index.md",
                *({name: f"methods/{name}.md"} for name in methods),
                {"Recipes": [{name: f"methods/{name}.md"} for name in recipes]},
            ]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages and the raw files."""
    made = {"methods/index.md": index_page(), "api.md": api_page(), "cli.md": cli_page()}
    methods, recipes = names()
    made |= {f"methods/{name}.md": method_page(name) for name in methods}
    made |= {f"methods/{name}.md": recipe_page(name) for name in recipes}
    made |= {address: path.read_text(encoding="utf-8") for address, path in OUTSIDE.items() if path.is_file()}
    for file in list(files):
        if file.src_uri.endswith(".ipynb"):
            files.remove(file)
            notebook = json.loads(Path(str(file.abs_src_path)).read_text(encoding="utf-8"))
            made[file.src_uri.removesuffix(".ipynb") + ".md"] = notebook_page(notebook)
    for address, text in made.items():
        files.append(File.generated(config, address, content=text))
    for path in sorted(RESULTS.glob("*.json")):
        files.append(File.generated(config, f"raw/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Turn names of raw files and paths of the repository into links of the site."""
    up = "../" * page.file.src_uri.count("/")
    # In a table GitHub wants a bar within code escaped, and this Markdown wants it plain.
    markdown = re.sub(r"`[^`\n]*`", lambda found: found[0].replace(r"\|", "|"), markdown)
    markdown = re.sub(
        r"(?<!\[)`benchmarks/results/([\w.-]+\.json)`",
        lambda found: f"[`{found[0].strip('`')}`]({up}raw/{found[1]})" if (RESULTS / found[1]).is_file() else found[0],
        markdown,
    )
    markdown = re.sub(
        r"(?<![\w/`.-])(20\d\d-[\w.-]+\.json)\b",
        lambda found: f"[{found[1]}]({up}raw/{found[1]})" if (RESULTS / found[1]).is_file() else found[0],
        markdown,
    )
    if page.file.src_uri in OUTSIDE:
        markdown = re.sub(r"\(docs/([\w/]+)\.(?:md|ipynb)\)", r"(\1.md)", markdown)
    return markdown.replace("(../foveate/demo/assets/model/README.md)", f"({up}demo_model.md)")


# Notebooks


def notebook_page(notebook: Mapping[str, Any]) -> str:
    """A notebook as Markdown: text, code, and what the code printed."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        if source.startswith("%%writefile "):
            head, _, source = source.partition("\n")
            parts.append(f'```python title="{head.split()[1]}"\n{source}\n```')
        else:
            parts.append(f"```python\n{source}\n```")
        printed = "".join("".join(output.get("text", ())) for output in cell["outputs"])
        if printed:
            parts.append(f'<div class="output" markdown>\n\n```text\n{printed.rstrip()}\n```\n\n</div>')
    return "\n\n".join(parts) + "\n"


# Python and the command line


def api_page() -> str:
    """Directives for the public names, from `foveate.__all__`."""
    import foveate

    functions, classes = [], []
    for name in foveate.__all__:
        thing = getattr(foveate, name)
        where = f"::: {getattr(thing, '__module__', '')}.{name}"
        if isinstance(thing, type):
            classes.append(where)
        elif callable(thing):
            functions.append(where)
    extra = [
        f"::: foveate.core.{name}"
        for name in ("method.Method", "method.ScoreMethod", "method.TokenMethod", "method.StepMethod", "view.TokenView",
                     "view.StepView", "selection.Selection", "trace.Trace", "trace.MediumTrace")
    ]  # fmt: skip
    parts = [
        "# Python",
        "Everything below is `foveate.NAME`. Methods and recipes are there too, under the names of their classes: "
        "[methods](methods/index.md).",
        "## Functions",
        *(f"{one}\n    options:\n      heading_level: 3" for one in functions),
        "## Classes",
        *(f"{one}\n    options:\n      heading_level: 3" for one in classes),
        "## For those who write methods",
        *(f"{one}\n    options:\n      heading_level: 3" for one in extra),
        "## For those who write families",
        "::: foveate.families._base.Family\n    options:\n      heading_level: 3",
    ]
    return "\n\n".join(parts) + "\n"


def cli_page() -> str:
    """Every command with its options, from the program itself."""
    import typer

    from foveate.cli.main import build_app

    parts = ["# Command line", "Made from the program itself; `foveate COMMAND --help` says the same."]
    parts += list(commands("foveate", typer.main.get_command(build_app())))
    return "\n\n".join(parts) + "\n"


def commands(path: str, command: Any) -> Iterator[str]:
    """The sections of a command and of those under it."""
    inner = getattr(command, "commands", {})
    for name, below in inner.items():
        yield from commands(f"{path} {name}", below)
    if inner:
        return
    yield f"## {path}"
    yield plain(command.help or "")
    rows = ["| option | default | what it is |", "|---|---|---|"]
    for parameter in command.params:
        is_option = parameter.param_type_name == "option"
        words = ", ".join(parameter.opts) if is_option else (parameter.metavar or parameter.name).upper()
        default = parameter.default
        shown = "" if default in (None, False, (), []) or callable(default) else f"`{default}`"
        rows.append(f"| `{words.replace('|', chr(92) + '|')}` | {shown} | {plain(getattr(parameter, 'help', None) or '')} |")
    if len(rows) > 2:
        yield "\n".join(rows)


def plain(text: str) -> str:
    """A help text on one line of a table."""
    return " ".join(text.split()).replace("|", r"\|").replace("<", "&lt;")
