"""The ready-made recipes: generated from one table, the published lists, and what the README's table says of them."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import yaml

from neuronmoe_plugins.allocation.experts import BlockShapes, scale_experts
from neuronmoe_plugins.data.spec import Amount, load_spec

RECIPES = Path(__file__).parents[1] / "recipes"
PAPER = json.loads((Path(__file__).parent / "data" / "paper_tables.json").read_text(encoding="utf-8"))
GREEK: list[int] = PAPER["table2_llama32_3b_greek"]["neuronmoe"]
LAYERMOE: list[int] = PAPER["table2_llama32_3b_greek"]["layermoe"]
OTHERS = PAPER["table8_allocations_llama32_3b"]
PUBLISHED: dict[str, tuple[list[int], int]] = {
    "llama3.2-3b-greek": (GREEK, 49),
    "llama3.2-3b-turkish": (OTHERS["turkish"], 50),
    "llama3.2-3b-hungarian": (OTHERS["hungarian"], 47),
    "llama3.2-3b-greek-english-only": (scale_experts(PAPER["table6_neurons_per_language"]["en"]).num_experts, 37),
    "llama3.2-3b-greek-layermoe": (LAYERMOE, 84),
    "llama3.2-3b-greek-uniform": ([3] * 28, 84),
    "qwen1.5-1.8b-greek": (PAPER["table9_qwen15_18b"]["neuronmoe"], 36),
}
CONTINUAL = "llama3.2-3b-greek-turkish-hungarian"
# Of the config.json on the hub.
SHAPES = {
    "llama3.2-3b": BlockShapes(3072, [3 * 3072 * 8192] * 28),
    "qwen1.5-1.8b": BlockShapes(2048, [3 * 2048 * 5504] * 24),
}


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((RECIPES / name).read_text(encoding="utf-8"))


def row(folder: str) -> list[str]:
    """The cells of a folder's row in the README."""
    lines = (RECIPES / "README.md").read_text(encoding="utf-8").splitlines()
    return [cell.strip() for line in lines if line.startswith(f"| `{folder}` |") for cell in line.strip("|").split("|")]


def test_files_are_up_to_date() -> None:
    files = runpy.run_path(str(RECIPES / "generate.py"))["recipe_files"]()
    shipped = {path.relative_to(RECIPES).as_posix() for path in RECIPES.rglob("*") if path.suffix in (".yaml", ".json")}
    assert shipped - {"data/paper.yaml", "data/study.yaml"} | {"README.md"} == set(files)
    for name, text in files.items():
        assert (RECIPES / name).read_text(encoding="utf-8") == text, f"run recipes/generate.py: {name}"


@pytest.mark.parametrize("folder", PUBLISHED)
def test_published_experts(folder: str) -> None:
    experts, total = PUBLISHED[folder]
    assert read(f"{folder}/stage1.yaml")["ada_moe_num_experts_list"] == experts
    assert sum(experts) == total
    assert row(folder)[3:6] == [str(len(experts)), str(total), str(total - len(experts))]


@pytest.mark.parametrize("folder", [*PUBLISHED, CONTINUAL])
def test_added_parameters_in_the_readme(folder: str) -> None:
    name = f"{folder}/hungarian-stage1.yaml" if folder == CONTINUAL else f"{folder}/stage1.yaml"
    shapes = next(shapes for model, shapes in SHAPES.items() if folder.startswith(model))
    added = sum(shapes.added_parameters(read(name)["ada_moe_num_experts_list"]))
    assert int(row(folder)[6].replace(",", "")) == added


def test_each_further_language_brings_its_own_new_experts() -> None:
    languages = {"greek": GREEK, "turkish": OTHERS["turkish"], "hungarian": OTHERS["hungarian"]}
    counts, adapter = [1] * 28, None
    for language, alone in languages.items():
        stage1 = read(f"{CONTINUAL}/{language}-stage1.yaml")
        stage2 = read(f"{CONTINUAL}/{language}-stage2.yaml")
        assert stage1.get("adapter_name_or_path") == adapter
        assert stage1.get("old_moe_num_experts_list", [1] * 28) == counts
        counts = [old + new - 1 for old, new in zip(counts, alone, strict=True)]
        assert stage1["ada_moe_num_experts_list"] == counts
        assert stage2.get("old_moe_num_experts_list") == (None if adapter is None else counts)
        assert stage2["adapter_name_or_path"] == stage1["output_dir"]
        adapter = stage2["output_dir"]
    assert sum(counts) == 28 + 21 + 22 + 19 == int(row(CONTINUAL)[4])


@pytest.mark.parametrize("folder", [*PUBLISHED, CONTINUAL])
def test_a_folder_has_the_entries_of_its_data_sets(folder: str) -> None:
    info = json.loads((RECIPES / folder / "dataset_info.json").read_text(encoding="utf-8"))
    used = [read(str(path.relative_to(RECIPES)))["dataset"] for path in (RECIPES / folder).glob("*.yaml")]
    assert set(info) == set(",".join(used).split(","))
    assert {info[name]["language"] for name in info if name.endswith("_replay")} == {"en", "zh", "es"}
    assert {entry.get("num_samples") for name, entry in info.items() if name.endswith("_replay")} == {50_000}


@pytest.mark.parametrize("folder", PUBLISHED)
def test_the_papers_data_are_those_of_the_recipes(folder: str) -> None:
    datasets = {dataset.name: dataset for dataset in load_spec(RECIPES / "data/paper.yaml").datasets}
    info = json.loads((RECIPES / folder / "dataset_info.json").read_text(encoding="utf-8"))
    for name, entry in info.items():
        dataset = datasets[name]
        assert (f"{name}.jsonl", dataset.language) == (entry["file_name"], entry["language"])
        if dataset.role == "target":
            assert dataset.amount == Amount("tokens", 2_000_000_000)
        else:
            assert dataset.role == "replay"
            assert dataset.amount == Amount("documents", entry["num_samples"])


def test_offload_differs_from_zero2_only_in_the_optimizer() -> None:
    zero2 = json.loads((RECIPES / "deepspeed" / "zero2.json").read_text(encoding="utf-8"))
    offload = json.loads((RECIPES / "deepspeed" / "zero2-offload.json").read_text(encoding="utf-8"))
    assert offload["zero_optimization"].pop("offload_optimizer") == {"device": "cpu", "pin_memory": True}
    assert offload == zero2
