"""foveate methods, models, doctor: tables that come from trying."""

from __future__ import annotations

import json
import re

import pytest

import foveate
from foveate import families, methods
from foveate.api.capabilities import family_capabilities, method_capabilities, recipe_capabilities
from foveate.api.capability_table import packaged

HOW = "measured values changed: run `make capabilities`, look at the difference, and commit it"


def test_the_packaged_rows_of_methods_and_recipes_are_what_is_measured():
    assert list(packaged().methods) == method_capabilities(), HOW
    assert list(packaged().recipes) == recipe_capabilities(), HOW


@pytest.mark.full
def test_the_packaged_rows_of_families_are_what_is_measured():
    assert list(packaged().families) == list(family_capabilities()), HOW


def test_models_says_on_which_transformers_it_was_measured_and_how_to_measure_anew(command):
    _, out, _ = command("models")
    assert f"Tried on transformers {packaged().transformers}; --probe tries them here and now." in " ".join(out.split())


def test_probing_measures_and_packages_nothing_else(command, monkeypatch):
    row = packaged().families[0]
    monkeypatch.setattr("foveate.api.capabilities.family_capabilities", lambda names: iter([row]))
    code, out, _ = command("models", "--probe", "--json")
    assert code == 0 and [one["name"] for one in json.loads(out) if not one["not_served"]] == [row.name]


def test_methods_lists_every_method_with_probed_facts(command):
    code, out, _ = command("methods", "--json")
    assert code == 0
    rows = {row["name"]: row for row in json.loads(out)}
    assert set(rows) == set(methods.names())
    assert rows["fastv"]["sites"] == ["llm"]
    assert rows["fastv"]["masks"]
    assert rows["fastv"]["looks_at"] == "attention in the language model"
    assert rows["cdpruner"]["looks_at"] == "the words of the question"
    assert "DocVQA" in rows["scope"]["published"]
    assert rows["pool"]["effect"] == "merges"
    assert not rows["pool"]["masks"]
    assert rows["random"]["sites"] == ["vision", "pre_llm", "llm"]
    assert rows["partition"]["sites"] == ["vision", "llm"]
    assert rows["random_gate"]["sites"] == rows["dynamic_text"]["sites"] == ["decode"]
    assert rows["dynamic_instruct"]["sites"] == ["llm"]


def test_methods_says_which_presets_are_published_and_which_are_ours(command):
    _, out, _ = command("methods")
    words = " ".join(re.sub("[│┃]", " ", out).split())
    assert "presets of the authors: onevision-image" in words
    assert "presets of ours, scaled by depth from onevision-image and not measured: llava-next-13b" in words
    assert "AI2D -2.8" in words


def test_models_lists_every_family_with_what_ran(command):
    code, out, _ = command("models", "--json")
    assert code == 0
    rows = {row["name"]: row for row in json.loads(out) if not row["not_served"]}
    assert set(rows) == set(families.names())
    for row in rows.values():
        described = families.get(row["name"]).encoder(families.get(row["name"]).tiny_config()) is not None
        sites = ["decode"] if families.get(row["name"]).is_text_only else ["pre_llm", "llm", "decode"]
        broken = bool(families.get(row["name"]).broken_in)  # in the transformers that the table was measured on
        assert row["sites"] == ([] if broken else [*(["vision"] if described else []), *sites])
        assert row["backends"] == ([] if broken else ["eager", "sdpa"])
        assert all(row["refused"].values())
    assert rows["qwen2_5_vl"]["video"]
    assert not rows["llava"]["video"]


def test_models_lists_what_is_not_served_with_the_reason(command):
    _, out, _ = command("models", "--json")
    rows = {row["name"]: row for row in json.loads(out) if row["not_served"]}
    assert {name: row["not_served"] for name, row in rows.items()} == families.refused()
    assert not any(row["sites"] or row["backends"] or row["video"] for row in rows.values())
    _, out, _ = command("models")
    words = " ".join(out.split())
    assert "not served" in words and "mllama" in words and "recurrent layers" in words


def test_tables_are_readable(command):
    for name, word in (("methods", "arXiv 2403.06764"), ("models", "LLaVA 1.5")):
        code, out, _ = command(name)
        assert code == 0
        assert word in out


def test_doctor_names_the_first_valid_layer_of_sliding_models(command):
    code, out, _ = command("doctor", "gemma-3-12b")
    assert code == 0
    assert "fastv from layer 6 on" in out
    assert "sites: vision(0..26), pre_llm, llm(1..47), decode" in out
    assert "not measured" in out


def test_doctor_says_where_to_start_for_some_kinds_of_work(command):
    _, image, _ = command("doctor", "llava-1.5-7b")
    _, video, _ = command("doctor", "qwen2.5-vl-7b")
    for out in (image, video):
        for plan in re.findall(r"(?:cdpruner|divprune|evs)\(.*?\)", out):
            foveate.parse(plan)
        assert "cdpruner(" in out and "divprune(" in out and "--max-visual-tokens" in out
    assert "evs(" in video and "evs(" not in image


@pytest.mark.full
def test_doctor_measures_a_loaded_model(command, model_folder, picture):
    code, out, _ = command("doctor", model_folder, "--image", picture)
    assert code == 0
    assert "suggested plan: fastv(layer=2, keep=0.5)" in out
    assert "sites: vision(0..3), pre_llm, llm(1..7), decode" in out
    assert "decode" not in "".join(line for line in out.splitlines() if line.startswith("refused"))
    assert "x faster" in out


def test_unknown_model_gives_one_line(command):
    code, out, err = command("doctor", "lava-1.5-7b")
    assert code == 2
    assert len(err.strip().splitlines()) == 1
    assert not out
