"""What the README and the pages that took over from it say is what the code does and what was measured."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from foveate import methods, recipes
from foveate.api.capability_table import packaged
from foveate.cli.catalog import markdown_table
from foveate.core import registry
from foveate.spec import parse

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = {path.name: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("**/*.md"))}
STUDIES = ("speed.md", "vision_encoder.md", "quality.md", "merging.md", "predictors.md", "generation.md")
MOST_WORDS = 1200


def section(title: str) -> str:
    """A section of the README."""
    return re.split(r"^## ", README.partition(f"## {title}\n")[2], flags=re.MULTILINE)[0]


def test_it_is_short():
    assert len(README.split()) <= MOST_WORDS


def test_the_family_table_is_the_generated_one():
    shown = re.search(r"<!-- families -->\n(.*?)\n<!-- /families -->", DOCS["models.md"], re.DOTALL)
    assert shown is not None
    assert shown[1] == markdown_table(packaged().families), "run make capabilities"


@pytest.mark.parametrize("family", packaged().families, ids=lambda family: family.name)
def test_a_family_that_is_named_stands_where_its_stages_can_act(family):
    encoder, _, rest = section("Supported models").partition("In the language model:")
    decoder, _, failing = rest.partition(". Llama 4 fails")
    part = encoder if "vision" in family.sites else decoder if family.sites else f"Llama 4{failing}"
    # Relatives share a word: "LLaVA-NeXT (and Video)", "Qwen3-VL (and MoE)".
    words = re.escape(family.title).replace("LLaVA\\-NeXT\\-Video", r"LLaVA-NeXT \(and Video\)")
    words = words.replace(r"Qwen3\-VL\ MoE", r"Qwen3-VL \(and MoE\)")
    if re.search(words, section("Supported models")):  # a new one need not be named here
        assert re.search(words, part), family.title


def test_what_is_named_as_a_method_or_recipe_is_one():
    named = set(re.findall(r"`(\w+)`", section("Methods").partition("`foveate methods`")[0]))
    assert len(named) > 10 and named <= {*registry.file_names(methods), *registry.file_names(recipes)}


@pytest.mark.parametrize("spec", re.findall(r'"((?:fastv|random|uniform|pool|staged)\([^"]*\))"', README))
def test_every_spec_in_quotes_can_be_read(spec):
    parse(spec)


def test_the_plan_table_can_be_read():
    specs = re.findall(r"^\| `([^`]+)`", DOCS["plans.md"], re.MULTILINE)
    assert len(specs) >= 8
    for spec in specs:
        if "(" in spec and "..." not in spec:
            parse(spec.replace(r"\|", "|"))


def exact_matches() -> dict[str, tuple[float, float]]:
    """Plain and under the plan, by the plan's text, from the raw files that the README names."""
    found: dict[str, tuple[float, float]] = {}
    for name in re.findall(r"\((benchmarks/results/[^)]+)\)", section("Which setting when")):
        rows = json.loads((ROOT / name).read_text(encoding="utf-8"))["rows"]
        plain = next(row["accuracy"] for row in rows if row["plan"] == "none")
        found |= {row["plan"].replace('"', ""): (plain, row["accuracy"]) for row in rows}
    return found


def settings() -> list[tuple[str, str]]:
    """Each plan of the table, and what stands after it in its cell."""
    cells = re.findall(r"\|([^|\n]+)", section("Which setting when"))
    return [found for cell in cells for found in re.findall(r"`(\w+\([^`]*\))`([^`]*)", cell)]


@pytest.mark.parametrize(("plan", "after"), settings())
def test_every_setting_can_be_read_and_its_numbers_are_the_measured_ones(plan, after):
    parse(plan.replace("path=...", "path=demo"))
    measured = exact_matches()
    if "dynamic_image" in plan:
        plan = f"{plan} | dynamic_text(layer=2, path=...)"
    assert plan in measured
    shown = re.search(r"\((\d\.\d\d) -> (\d\.\d\d)", after)
    if shown is not None:
        for number, value in zip(shown.groups(), measured[plan], strict=True):
            assert abs(float(number) - value) <= 0.005 + 1e-9


def test_the_smaller_pictures_lose_what_was_measured():
    rows = json.loads((ROOT / "benchmarks/results/2026-11-21-quality-demo.json").read_text(encoding="utf-8"))["rows"]
    measured = {row["keep"]: row["accuracy"] for row in rows if "downsample" in row["name"]}
    (line,) = (line for line in section("Which setting when").splitlines() if line.startswith("| a smaller picture"))
    half, quarter = (float(number) for number in re.findall(r"-> (\d\.\d\d)\)", line))
    assert abs(half - measured[0.5]) <= 0.005 and abs(quarter - measured[0.25]) <= 0.005


def test_the_five_numbers_are_those_of_the_studies():
    studies = " ".join(DOCS[name] for name in STUDIES)
    rows = [line for line in section("Five numbers").splitlines() if "benchmarks/results/" in line]
    assert len(rows) == 5
    for row in rows:
        for number in re.findall(r"\d+\.\d+ %(?: \[[^\]]+\])?|\b[01]\.\d{3}\b", row):
            assert number in studies, number


def test_the_two_commands_come_first():
    assert README.index("make demo") < README.index("make test") < README.index("## Four lines")


def test_pictures_and_links_of_the_readme_exist():
    for path in re.findall(r"\]\(([^)]+)\)", README):
        assert (ROOT / path).exists(), path


def test_pictures_of_the_pages_exist():
    for text in DOCS.values():
        for path in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text):
            assert (ROOT / "docs" / path).is_file(), path


def test_every_guide_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for path in (ROOT / "docs" / "guides").iterdir():
        assert f"guides/{path.stem}.md" in navigation, path
