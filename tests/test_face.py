"""`import neuronmoe_plugins` as a Python user meets it: light, complete, and each function does its work."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import neuronmoe_plugins as face
from allocations import save_scores
from runs import save_run


def test_naming_all_imports_nothing_heavy() -> None:
    code = (
        "import sys, neuronmoe_plugins as face; assert set(face.__all__) <= set(dir(face)); face.hookimpl;"
        "sys.exit(bool({'torch', 'numpy', 'typer', 'yaml'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", face.__all__)
def test_each_name_is_there(name: str) -> None:
    assert getattr(face, name) is vars(face)[name]


def test_another_name_is_not() -> None:
    with pytest.raises(AttributeError, match="module 'neuronmoe_plugins' has no attribute 'analyse'"):
        face.analyse  # noqa: B018


def test_the_way_from_texts_to_a_recipe(tmp_path: Path) -> None:
    datasets = []
    for language, role in (("el", "target"), ("en", "replay")):
        (tmp_path / f"{language}.txt").write_text("".join(f"{language} line {number}\n" for number in range(9)))
        source = f"{language}.txt"
        datasets.append(
            {"name": f"{language}_{role}", "language": language, "role": role, "source": source, "documents": 9}
        )
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump({"seed": 1, "datasets": datasets}))
    prepared = face.prepare_data(tmp_path / "spec.yaml", tmp_path / "data", workers=1)
    assert [entry["documents"] for entry in prepared.manifest["datasets"]] == [9, 9]

    scores = save_scores(tmp_path, {"layer_scores": [2, 1, 4]})
    request = face.AllocationRequest(scores, source="en", targets=("el",), min_experts=1, max_experts=5)
    allocation = face.allocate(request)
    allocation.save(tmp_path / "allocation.yaml")
    assert allocation.num_experts[2] == 5

    recipe = face.RecipeRequest(
        tmp_path / "allocation.yaml",
        "org/model",
        tmp_path / "run",
        data=tmp_path / "data",
        deepspeed=face.Deepspeed.ZERO2,
    )
    assert [path.name for path in face.recipe(recipe)] == ["stage1.yaml", "stage2.yaml", "zero2.json"]
    num_experts = yaml.safe_load((tmp_path / "run" / "stage1.yaml").read_text())["ada_moe_num_experts_list"]
    assert face.MoeConfig(num_experts=num_experts).num_experts == allocation.num_experts


def test_comparing_evaluated_models(tmp_path: Path) -> None:
    base, better = (
        save_run(tmp_path / name, {"arc_el": {"acc_norm": hits}})
        for name, hits in (("base", [0, 1, 1, 0]), ("better", [1, 1, 1, 0]))
    )
    comparison = face.compare([base, better], ["base", "better"], bootstrap=face.Bootstrap(resamples=100))
    assert [model.name for model in comparison.models] == ["base", "better"]


def test_analysing_a_model_and_the_experts_of_an_adapter(tiny_model_dir: Path, tmp_path: Path) -> None:
    for language, letters in (("en", "abcdefgh"), ("el", "αβγδεζηθ")):
        lines = (" ".join(letters[number % 5 :]) for number in range(12))
        (tmp_path / f"{language}.txt").write_text("\n".join(f"{line} {n}." for n, line in enumerate(lines)))
    corpora = face.parse_corpus_specs([f"{language}={tmp_path / language}.txt" for language in ("en", "el")])
    model, sizes = str(tiny_model_dir), {"samples": 10, "device": "cpu"}
    analysis = face.analyze(face.AnalyzeOptions(model, tmp_path / "analysis", corpora, top_n=60, **sizes))
    assert set(analysis.neurons_per_language()) == {"en", "el"}
    with pytest.raises(face.UserError, match="no_adapter"):
        face.specialise(face.SpecialiseOptions(model, "no_adapter", tmp_path / "experts", corpora, **sizes))
