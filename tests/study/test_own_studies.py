"""The studies of this repository, planned on texts laid out as the demo's and a model of the same sizes."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from typer.testing import CliRunner

from allocations import save_analysis
from neuronmoe_plugins.cli import app
from neuronmoe_plugins.demo.texts import SOURCE, HelpSplit, write_split
from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.models import new_tokens
from neuronmoe_plugins.study.trainings import load_trainings

STUDIES = Path(__file__).parents[2] / "studies"
SIZES = {
    **{"model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30},
    **{"num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True},
}
COPY = 3 * 576 * 1536


@pytest.fixture
def fetch(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The program that fetches texts, whose packages have a line or two in each language."""
    monkeypatch.syspath_prepend(STUDIES)
    program = importlib.import_module("fetch_texts")

    def split(folders: Mapping[str, Path], sizes: object, seed: int, targets: Sequence[str]) -> HelpSplit:
        texts = {language: [f"{language} a", f"{language} b"] for language in folders}
        return HelpSplit(heldout=texts, analysis=texts, replay=["c"], train={code: texts[code] for code in targets})

    monkeypatch.setattr(program, "fetch_help", lambda downloads, packages: dict.fromkeys(packages, downloads))
    monkeypatch.setattr(program, "fetch_udhr", lambda downloads, pages: dict.fromkeys(pages, "d"))
    monkeypatch.setattr(program, "split_help", split)
    return program


@pytest.fixture
def folder(tmp_path: Path, fetch: ModuleType) -> Path:
    """A checkout after the demo's first steps and those of the studies, with an analysis by numbers made up."""
    new = new_tokens(49152, [f"token {place}" for place in range(1000)], ["embed_tokens"])
    extended = {"vocab_size": 50176, "neuronmoe_vocabulary": new}
    for name, more in (("demo/model", {}), ("smollm2-el", extended)):
        model = tmp_path / "runs" / name
        model.mkdir(parents=True)
        (model / "config.json").write_text(json.dumps(SIZES | more))
    texts = {"en": ["a"], "el": ["b"]}
    split = HelpSplit(heldout=texts, analysis=texts, replay=["c"], train={"el": ["d"]})
    write_split(split, {"en": "e", "el": "f"}, 1, tmp_path / "runs" / "demo" / "texts")
    fetch.main(tmp_path / "runs" / "languages")
    languages = (SOURCE, *fetch.TARGETS)
    neurons = {"en": [(0, "mlp.up_proj", 0)]}
    for language in fetch.TARGETS:
        neurons[language] = [(layer, "mlp.up_proj", unit) for layer in range(30) for unit in range(layer + 1)]
    gradients = {language: [1.0 + (7 * layer) % 30 for layer in range(30)] for language in languages}
    cosines = [
        [[1.0 if row == column else 0.3 + layer / 100 for row in languages] for column in languages]
        for layer in range(30)
    ]
    sizes = {"hidden_size": 576, "mlp_parameters": [COPY] * 30, "mlp_widths": [3 * (576 + 1536)] * 30}
    measured = {
        "layer_gradients": {"blocks": 6, "tokens": 512, "languages": gradients},
        "mlp_input_similarity": {"layers": cosines},
    }
    for name in ("demo/analysis", "languages/analysis"):
        save_analysis(tmp_path / "runs" / name, neurons, 30, **sizes, **measured)
    return tmp_path


@pytest.mark.parametrize("name", [path.name for path in sorted(STUDIES.glob("*.yaml"))])
def test_each_can_be_planned(name: str, folder: Path) -> None:
    spec = folder / "studies" / name
    spec.parent.mkdir()
    spec.write_text((STUDIES / name).read_text())
    told = yaml.safe_load(spec.read_text())

    result = CliRunner().invoke(app, ["study", str(spec), "--output", str(folder / "out"), "--dry-run"])

    assert result.exit_code == 0, result.exception
    trainings = load_trainings(spec, folder / "out")
    bases = {"base", *(f"base-{Path(arm['model']).name}" for arm in told["arms"].values() if "model" in arm)}
    assert {training.arm.family for training in trainings} == {*bases, *told["arms"]}
    assert all(training.parameters is not None for training in trainings)
    compared = {arm for claim in told["claims"].values() for arm in [claim["better"], *claim["than"]]}
    assert len({training.arm.name for training in trainings} & compared) == len(compared)


def test_budgets_are_equal_in_the_study_of_placements(folder: Path) -> None:
    spec = folder / "studies" / "smollm2.yaml"
    spec.parent.mkdir()
    spec.write_text((STUDIES / "smollm2.yaml").read_text())

    trainings = load_trainings(spec, folder / "out")

    for budget, new, layers in (("40", 10, 10), ("46", 16, 16)):
        arms = [each for each in trainings if each.arm.name.endswith(budget) or each.arm.name == f"first--{layers}"]
        own = [each for each in arms if each.target.language == "tr"]
        assert len(own) == 2 + 1 + 1 + 2 + 1 + 1 + 1 + 4 + 1 + 1
        experts = [each.allocation.new_experts for each in own if each.allocation is not None]
        assert experts == [new] * 12
        for each in own:
            assert each.parameters == pytest.approx(new * COPY, rel=0.02), each.arm.name


def test_texts_are_not_fetched_over_others(folder: Path, fetch: ModuleType) -> None:
    with pytest.raises(UserError, match="texts is there already; delete it, or name another folder"):
        fetch.main(folder / "runs" / "languages")


def test_the_rows_of_new_tokens_are_trained_where_the_model_has_them(folder: Path) -> None:
    spec = folder / "studies" / "smollm2-vocabulary.yaml"
    spec.parent.mkdir()
    spec.write_text((STUDIES / spec.name).read_text())

    trained = {each.arm.name: each for each in load_trainings(spec, folder / "out") if not each.is_base}

    told = {name: each.stages["stage1"].get("train_new_tokens", False) for name, each in trained.items()}
    assert told == {"plain": False, "equal-text": True, "equal-compute": True}
    added = {name: (each.parameters or 0) - (trained["plain"].parameters or 0) for name, each in trained.items()}
    assert added == {"plain": 0, "equal-text": 1000 * 576, "equal-compute": 1000 * 576}
