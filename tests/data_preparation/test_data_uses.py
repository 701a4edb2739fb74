"""What reads the folder afterwards: LLaMA-Factory's loader, `analyze --data` and `recipe --data`."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from data_preparation.preparing import prepare, write_jsonl, write_spec
from neuronmoe_plugins.cli import app

WORDS = {"el": "ποτάμι πόλη βράδυ δρόμος θάλασσα βουνό", "en": "river town evening road sea mountain"}


@pytest.fixture(params=["jsonl", "parquet"])
def data(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Training, replay and analysis texts of two languages."""
    generator = random.Random(0)
    given: list[dict[str, Any]] = []
    for language, words in WORDS.items():
        sentences = [" ".join(generator.choices(words.split(), k=8)).capitalize() + "." for _ in range(400)]
        write_jsonl(tmp_path / f"{language}.jsonl", [" ".join(sentences[n : n + 4]) for n in range(0, 400, 4)])
        own = {"language": language, "source": f"{language}.jsonl"}
        training = ("el_train", "target") if language == "el" else ("en_replay", "replay")
        given.append({"name": training[0], "role": training[1], "documents": 60, **own})
        given.append({"name": f"{language}_analysis", "role": "analysis", "sentences": 30, **own})
    prepare(write_spec(tmp_path / "spec.yaml", given, format=request.param), tmp_path / "data")
    return tmp_path / "data"


def command(*arguments: object) -> str:
    result = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_llamafactory_loads_every_text(data: Path) -> None:
    loader = pytest.importorskip("llamafactory.data.loader")
    from llamafactory.data.parser import get_dataset_list
    from llamafactory.hparams import DataArguments, ModelArguments
    from transformers import TrainingArguments

    arguments = DataArguments(dataset="el_train,en_replay", dataset_dir=str(data))
    training = TrainingArguments(output_dir=str(data / "run"), report_to="none", use_cpu=True)
    model = ModelArguments(model_name_or_path="none", cache_dir=str(data / "cache"))
    for attributes in get_dataset_list(["el_train", "en_replay"], str(data)):
        loaded = loader._load_single_dataset(attributes, model, arguments, training)
        assert len(loaded) == 60
        assert all(row["_prompt"][0]["content"] for row in loaded)


def test_analyze_and_recipe_take_the_folder(data: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    model = ["--model", tiny_model_dir]
    printed = command("analyze", *model, "--data", data, "--samples", 30, "--output", tmp_path / "run/analysis")
    assert "el: " in printed
    command(
        *("allocate", tmp_path / "run/analysis", "--source", "en", "--target", "el", "--total-experts", 6),
        *("--output", tmp_path / "allocation.yaml"),
    )
    command(
        *("recipe", "--allocation", tmp_path / "allocation.yaml", *model, "--data", data),
        *("--output", tmp_path / "run"),
    )
    stages = [yaml.safe_load((tmp_path / f"run/stage{number}.yaml").read_text()) for number in (1, 2)]
    assert stages[0]["dataset"] == "el_train"
    assert "en_replay" in stages[1]["dataset"]
    assert all(stage["dataset_dir"] == str(data) for stage in stages)
