"""The studies of this repository, planned on texts laid out as the demo's and a model of the same sizes."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from allocations import save_analysis
from neuronmoe_plugins.data.spec import load_spec as load_data_spec
from neuronmoe_plugins.demo.texts import SOURCE, HelpSplit, write_split
from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.files import write_json, write_texts
from neuronmoe_plugins.models import new_tokens
from neuronmoe_plugins.study.display import plan
from neuronmoe_plugins.study.runs import count_runs
from neuronmoe_plugins.study.trainings import load_trainings

STUDIES = Path(__file__).parents[2] / "studies"
SMOL = {
    **{"model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30},
    **{"num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True},
}
LARGE = SMOL | {
    **{"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 24},
    **{"num_key_value_heads": 8, "vocab_size": 128256},
}
# Of the studies of placements: total -> new experts, of which all arms with this budget have as many parameters.
BUDGETS = {"smollm2.yaml": {"40": 10, "46": 16}, "llama-3.2-3b.yaml": {"37": 9, "49": 21}}
# Of each of these budgets: language -> arms of copies, and arms that have a rank (low-rank experts, LoRA).
ARMS = {"smollm2.yaml": {"tr": (6, 2), "fi": (3, 1)}, "llama-3.2-3b.yaml": {"tr": (6, 2), "fi": (6, 2)}}


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
    texts = {"en": ["a"], "el": ["b"]}
    split = HelpSplit(heldout=texts, analysis=texts, replay=["c"], train={"el": ["d"]})
    write_split(split, {"en": "e", "el": "f"}, 1, tmp_path / "runs" / "demo" / "texts")
    fetch.main(tmp_path / "runs" / "languages")
    prepared = load_data_spec(STUDIES.parent / "recipes" / "data" / "study.yaml").datasets
    info = {each.name: {"file_name": f"{each.name}.jsonl", "language": each.language} for each in prepared}
    write_json(tmp_path / "data" / "dataset_info.json", info)
    for each in prepared:
        write_texts(tmp_path / "data" / f"{each.name}.jsonl", [each.name])
    new = new_tokens(49152, [f"token {place}" for place in range(1000)], ["embed_tokens"])
    extended = SMOL | {"vocab_size": 50176, "neuronmoe_vocabulary": new}
    for name, sizes in (("demo/model", SMOL), ("smollm2-el", extended), ("llama-3.2-3b/model", LARGE)):
        write_json(tmp_path / "runs" / name / "config.json", sizes)
    for name, sizes in (("demo", SMOL), ("languages", SMOL), ("llama-3.2-3b", LARGE)):
        save_made_up(tmp_path / "runs" / name / "analysis", fetch.TARGETS, sizes)
    return tmp_path


def save_made_up(folder: Path, targets: Sequence[str], sizes: Mapping[str, Any]) -> None:
    """An analysis of a model of these sizes."""
    languages, count, copy = (SOURCE, *targets), sizes["num_hidden_layers"], copy_of(sizes)
    neurons = {SOURCE: [(0, "mlp.up_proj", 0)]}
    for language in targets:
        neurons[language] = [(layer, "mlp.up_proj", unit) for layer in range(count) for unit in range(1 + layer // 3)]
    gradients = {language: [1.0 + (7 * layer) % count for layer in range(count)] for language in languages}
    cosines = [
        [[1.0 if row == column else 0.3 + layer / 100 for row in languages] for column in languages]
        for layer in range(count)
    ]
    save_analysis(
        folder,
        neurons,
        count,
        hidden_size=sizes["hidden_size"],
        mlp_parameters=[copy] * count,
        mlp_widths=[3 * (sizes["hidden_size"] + sizes["intermediate_size"])] * count,
        layer_gradients={"blocks": 6, "tokens": 512, "languages": gradients},
        mlp_input_similarity={"layers": cosines},
    )


def copy_of(sizes: Mapping[str, Any]) -> int:
    """Parameters of one expert."""
    return 3 * int(sizes["hidden_size"]) * int(sizes["intermediate_size"])


def own_spec(name: str, folder: Path) -> Path:
    """A study as a checkout has it, with models that are here."""
    spec = folder / "studies" / name
    spec.parent.mkdir()
    text = (STUDIES / name).read_text()
    spec.write_text(text.replace("model: meta-llama/Llama-3.2-3B", "model: ../runs/llama-3.2-3b/model"))
    return spec


@pytest.mark.parametrize("name", [path.name for path in sorted(STUDIES.glob("*.yaml"))])
def test_each_can_be_planned(name: str, folder: Path) -> None:
    spec = own_spec(name, folder)
    told = yaml.safe_load(spec.read_text())

    trainings = load_trainings(spec, folder / "out")

    assert f", {sum(map(count_runs, trainings))} left" in plan(trainings)[1]
    bases = {"base", *(f"base-{Path(arm['model']).name}" for arm in told["arms"].values() if "model" in arm)}
    assert {training.arm.family for training in trainings} == {*bases, *told["arms"]}
    assert all(training.parameters is not None for training in trainings)
    compared = {arm for claim in told["claims"].values() for arm in [claim["better"], *claim["than"]]}
    assert len({training.arm.name for training in trainings} & compared) == len(compared)
    for budget, new in BUDGETS.get(name, {}).items():
        arms = [each for each in trainings if each.arm.name.endswith(f"-{budget}")]
        copies = new * copy_of(SMOL if name == "smollm2.yaml" else LARGE)
        for language, (placed, low_rank) in ARMS[name].items():
            own = [each for each in arms if each.target.language == language]
            assert len(own) == placed + low_rank
            experts = [each.allocation.new_experts for each in own if each.allocation and not each.rank]
            assert experts == [new] * placed
            assert sum(bool(each.rank) for each in own) == low_rank
            assert [each.parameters for each in own] == pytest.approx([copies] * len(own), rel=0.02)


def test_texts_are_not_fetched_over_others(folder: Path, fetch: ModuleType) -> None:
    with pytest.raises(UserError, match="texts is there already; delete it, or name another folder"):
        fetch.main(folder / "runs" / "languages")


def test_the_rows_of_new_tokens_are_trained_where_the_model_has_them(folder: Path) -> None:
    spec = own_spec("smollm2-vocabulary.yaml", folder)

    trained = {each.arm.name: each for each in load_trainings(spec, folder / "out") if not each.is_base}

    told = {name: each.stages["stage1"].get("train_new_tokens", False) for name, each in trained.items()}
    assert told == {"plain": False, "equal-text": True, "equal-compute": True}
    added = {name: (each.parameters or 0) - (trained["plain"].parameters or 0) for name, each in trained.items()}
    assert added == {"plain": 0, "equal-text": 1000 * 576, "equal-compute": 1000 * 576}
