"""What is wrong in a spec is said in one line, before anything is trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from made_studies import SPEC, Studies

from neuronmoe_plugins.allocation.scores import ScoresFile
from neuronmoe_plugins.study import spec
from neuronmoe_plugins.study.trainings import load_trainings

EL = SPEC["targets"]["el"]


def of_arm(**values: Any) -> dict[str, Any]:
    return {"arms": {"a": values}}


def of_allocation(**options: Any) -> dict[str, Any]:
    return of_arm(method="experts", allocate={"origin": "scores.json", **options})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modle": "x"}, ": unknown key 'modle': did you mean model?"),
        ({"model": "./nix"}, ": model ./nix does not exist, and is no name on the Hugging Face Hub (OWNER/NAME)"),
        ({"learning_rates": [0.1, 0]}, ": learning_rates: must be learning rates above 0, each once; got [0.1, 0]"),
        ({"seeds": [1, 1]}, ": seeds: must be seeds, each once; got [1, 1]"),
        ({"training": {"seed": 1}}, ": training: seed follows from seeds; leave it out"),
        ({"stage1": {"learning_rate": 1}}, ": stage1: learning_rate follows from learning_rates; leave it out"),
        ({"targets": {True: EL}}, ": targets: True is no language code such as el; put it in quotes if it is one"),
        (
            {"targets": {"el": EL | {"texts": None}}},
            ": targets: el: it has no held-out text, by which learning rates are chosen; add texts",
        ),
        (
            {"targets": {"el": EL | {"texts": {"greek": "en.jsonl"}}}},
            ": the texts en and greek are the same file, FOLDER/en.jsonl",
        ),
        ({"targets": {"el": EL | {"texts": {"en": "el.jsonl"}}}}, ": two texts are called en; name one otherwise"),
        (
            {"targets": {"el": EL | {"texts": {"el": "data/el_train.jsonl"}}}},
            ": the text el is FOLDER/data/el_train.jsonl, which el_train has for training; hold another text out",
        ),
        ({"targets": {"el": EL | {"texts": {"el": "nix"}}}}, "nix cannot be read as UTF-8 text"),
        (
            {"targets": {"el": EL | {"train": "nix"}}},
            "dataset_info.json has no data set nix; it has: el_train, en_repla",
        ),
        (
            of_arm(method="lara"),
            ": arms: a: method: must be one of lora, full, freeze, experts; got 'lara': did you mean",
        ),
        (
            of_arm(method="lora", rank=4, model="./nix"),
            ": arms: a: model ./nix does not exist, and is no name on the Hugg",
        ),
        (
            {"arms": {"a": {"method": "full", "model": "other"}, "base-other": {"method": "full"}}},
            ": arms: a: model: there would be another base-other; rename the folder FOLDER/other",
        ),
        (of_arm(method="lora", ranks=4), ": arms: a: unknown key 'ranks': did you mean rank?"),
        (of_arm(method="lora"), ": arms: a: rank is missing"),
        (of_arm(method="lora", rank=[4, 0]), ": arms: a: rank: must be a whole number from 1 on; got 0"),
        (of_arm(method="lora", rank=[4, 4]), ": arms: a: there are two arms called a-4; name one otherwise"),
        ({"stage2": None}, ": arms: even: stage2: the study has none; add stage2: {} to it, or leave this out"),
        (of_arm(method="full", targets="tr"), ": arms: a: targets: tr is not among the study's: el"),
        (of_arm(method="freeze", layers=0), ": arms: a: layers: must be a number of layers, not 0; got 0"),
        (
            of_arm(method="experts"),
            ": arms: a: exactly one of allocate, allocation and num_experts must say which experts",
        ),
        (of_arm(method="experts", num_experts=1), ": arms: a: num_experts: must be a whole number from 2 on; got 1"),
        (
            of_arm(method="experts", allocate={"strategy": "uniform"}),
            ": arms: a: a: targets: el has no analysis to allocate from; add analysis: DIR",
        ),
        (
            of_allocation(strategy="nix"),
            ": arms: a: a: unknown strategy 'nix'; there are: gradient, gradient-ratio",
        ),
        (of_allocation(stratgy="x"), ": arms: a: a: allocate: unknown option 'stratgy': did you mean strategy?"),
        (
            of_allocation(strategy="shape", shape=["ends", "edge"], total_experts=6),
            ": arms: a: a-edge: allocate: shape is 'edge'; it must be one of ends, middle, early, late, even, random",
        ),
        (
            of_allocation(expert_targets="both"),
            ": arms: a: a: --expert-targets needs --expert-rank R or --choose rank: full copies are of MLPs alone",
        ),
        (of_allocation(total_experts="6"), ": arms: a: a: allocate: total_experts is '6'; it must be of the kind int"),
        (of_allocation(total_experts=3), ": arms: a: a: --total-experts 3 is not possible: 4 layers of 1 to 6 experts"),
        (
            of_arm(method="experts", allocation="one.yaml"),
            ": arms: a (a, el): num_experts has 1 entries, but MODEL has 4 layers; allocate from an analysis of",
        ),
    ],
)
def test_what_is_wrong_is_one_line(changes: dict[str, Any], message: str, studies: Studies) -> None:
    shutil.copytree("model", "other")
    Path("scores.json").write_text(json.dumps({"layer_scores": [4, 3, 2, 1]}))
    Path("one.yaml").write_text(
        "{num_experts: [2], layer_scores: [], min_experts: 1, max_experts: 2, rounding: null, strategy: uniform, "
        "source: en, targets: [el], scores_from: x, total_experts: 2}"
    )

    result = studies.run(**changes)

    said = str(result.exception).replace(str(studies.folder.resolve()), "FOLDER")
    said = said.replace(str(Path("model").resolve()), "MODEL")
    assert result.exit_code == 1 and message in said, said
    assert "\n" not in said
    assert not Path("out").exists()


def test_a_language_that_stands_there_twice_is_learnt_once(studies: Studies) -> None:
    spec = studies.write(**of_arm(method="lora", rank=4, targets=["el", "el"]))

    assert [each.arm.name for each in load_trainings(spec, Path("out"))] == ["base", "a"]


def test_what_arms_allocate_from_is_read_once(studies: Studies, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("scores.json").write_text(json.dumps({"layer_scores": [4, 3, 2, 1]}))
    read: list[Path] = []

    def read_origin(path: Path) -> ScoresFile:
        read.append(path)
        return ScoresFile(path)

    monkeypatch.setattr(spec, "read_origin", read_origin)

    trainings = load_trainings(studies.write(**of_allocation(max_experts=[2, 3, 4])), Path("out"))

    assert [each.allocation.max_experts for each in trainings if each.allocation is not None] == [2, 3, 4]
    assert read == [studies.folder / "scores.json"]
