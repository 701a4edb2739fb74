"""`allocation.yaml`: what is written comes back, and what is wrong is named."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from allocations import run_allocate
from neuronmoe_plugins.allocation.allocation import Allocation
from neuronmoe_plugins.errors import UserError

KEYS = {each.name: each for each in fields(Allocation)}
ALLOCATION = Allocation(
    num_experts=[6, 1, 2],
    layer_scores=[342.0, 11.0, 79.5],
    min_experts=1,
    max_experts=6,
    rounding="floor",
    strategy="neuron-diversity",
    source="en",
    targets=["no", "el"],
    scores_from="run/analysis",
    hidden_size=10,
    mlp_parameters=[100, 100, 100],
)
# As allocations were written before they had scales, budgets and sizes.
OLD_KEYS = ["layer_scores", "max_experts", "min_experts", "note", "num_experts", "rounding", "scores_from", "source"]
OLD_KEYS += ["strategy", "targets", "total_experts"]


def change(path: Path, **changes: object) -> None:
    ALLOCATION.save(path)
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))


def test_round_trip(tmp_path: Path) -> None:
    budgeted = replace(ALLOCATION, rounding=None, scale="log", combine="mean", neuron_identity="unit", budget=70)
    budgeted = replace(budgeted, max_experts=None, requested_total_experts=9, max_added_parameters=800)
    bare = replace(ALLOCATION, source=None, targets=[], note="why", hidden_size=None, mlp_parameters=None)
    for allocation in (ALLOCATION, budgeted, bare, replace(bare, layer_scores=[])):
        allocation.save(tmp_path / "new" / "allocation.yaml")
        assert Allocation.load(tmp_path / "new" / "allocation.yaml") == allocation
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["allocation.yaml"]


def test_what_other_programs_read(tmp_path: Path) -> None:
    ALLOCATION.save(tmp_path / "allocation.yaml")
    content = yaml.safe_load((tmp_path / "allocation.yaml").read_text())
    assert list(content)[:3] == ["num_experts", "total_experts", "added_parameters"]
    assert [content[key] for key in list(content)[:3]] == [[6, 1, 2], 9, 680]
    assert content["targets"] == ["no", "el"]
    assert content.keys() == KEYS.keys()


def test_older_files_get_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "allocation.yaml"
    ALLOCATION.save(path)
    content = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({key: content[key] for key in OLD_KEYS}))
    assert Allocation.load(path) == replace(ALLOCATION, hidden_size=None, mlp_parameters=None)
    path.write_text(yaml.safe_dump({key: content[key] for key in OLD_KEYS if key != "note"}))
    assert Allocation.load(path).note is None


def test_failed_save_keeps_the_earlier_file(tmp_path: Path) -> None:
    (tmp_path / "allocation.yaml").mkdir()
    (tmp_path / "allocation.yaml" / "mine").touch()
    with pytest.raises(UserError, match=r"allocation\.yaml cannot be written"):
        ALLOCATION.save(tmp_path / "allocation.yaml")
    assert [path.name for path in tmp_path.iterdir()] == ["allocation.yaml"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_experts": []}, r"num_experts is \[\]; it must be a list of whole numbers"),
        ({"num_experts": [6, 0, 3]}, "num_experts is .* must be a list of whole numbers, 1 or more"),
        ({"num_experts": [6, True, 2]}, "num_experts is"),
        ({"num_experts": "6,1,2"}, "num_experts is '6,1,2'"),
        ({"num_experts": [6, 1, 1]}, "total_experts is 9, but 8 follows from num_experts; correct one"),
        ({"added_parameters": 681}, "added_parameters is 681, but 680 follows from num_experts"),
        ({"added_parameters": None}, "added_parameters is None, but 680 follows"),
        ({"layer_scores": [1.0]}, "num_experts has 3 layers, layer_scores 1"),
        ({"mlp_parameters": [1]}, "num_experts has 3 layers, mlp_parameters 1"),
        ({"mlp_parameters": None}, "hidden_size and mlp_parameters belong together"),
        ({"hidden_size": None}, "hidden_size and mlp_parameters belong together"),
        ({"attention_widths": [1]}, "num_experts has 3 layers, attention_widths 1"),
        ({"expert_targets": "heads"}, "expert_targets is 'heads'; it must be mlp, attention, both or null"),
        (
            {"expert_targets": "both"},
            "expert_targets has no effect without expert_rank; set it to null",
        ),
        ({"layer_scores": ["a", 1, 2]}, "layer_scores is"),
        ({"layer_scores": [float("nan"), 1, 2]}, r"layer_scores is \[nan, 1, 2\]; it must be a list of numbers"),
        ({"targets": [False]}, r"targets is \[False\]; it must be a list of languages \(in quotes\)"),
        ({"source": None, "sauce": 1}, r"unknown key\(s\) 'sauce'; remove"),
        ({"rounding": 1}, "rounding is 1; it must be floor, round or null"),
        ({"scale": "cubic"}, "scale is 'cubic'; it must be linear, sqrt, log or null"),
        ({"combine": "sum"}, "combine is 'sum'; it must be union, mean or null"),
        ({"neuron_identity": "layer"}, "neuron_identity is 'layer'"),
        ({"budget": 0}, "budget is 0; it must be a whole number"),
        ({"max_experts": 0x1 << 20_000}, "max_experts is too large to print"),
    ],
)
def test_wrong_content_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = tmp_path / "allocation.yaml"
    if "max_experts" in changes:
        ALLOCATION.save(path)
        path.write_text(path.read_text().replace("max_experts: 6", f"max_experts: {changes['max_experts']:#x}"))
    else:
        change(path, **changes)
    with pytest.raises(UserError, match=message) as caught:
        Allocation.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "does not exist"),
        ("a: [", "is not YAML"),
        ("- 1", "is not an allocation"),
        ("num_experts: [1]", "lacks layer_scores, max_experts"),
    ],
)
def test_no_allocation(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "allocation.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        Allocation.load(path)
    assert "\n" not in str(caught.value)


NUMBERS = st.one_of(st.integers(), st.integers(1, 4), st.floats(), st.floats(0, 1), st.just(10**400))
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=6), st.dates(), st.binary(max_size=3))
NESTED = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner))
ANYTHING = st.one_of(NESTED, st.lists(NUMBERS, min_size=3, max_size=3))
IN_ONE_FOLDER = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def load_or_user_error(path: Path) -> None:
    """Whatever the file holds: an allocation that can be used and written, or one line."""
    try:
        allocation = Allocation.load(path)
    except UserError as error:
        assert str(path) in str(error)
        assert len(str(error).splitlines()) == 1
    else:
        allocation.save(path.with_name("again.yaml"))
        assert Allocation.load(path.with_name("again.yaml")) == allocation


@given(st.dictionaries(st.one_of(st.sampled_from(sorted(KEYS)), st.text(max_size=4), st.integers()), ANYTHING))
@IN_ONE_FOLDER
def test_any_value_of_any_key_is_taken_or_named(tmp_path: Path, changes: dict[Any, Any]) -> None:
    ALLOCATION.save(tmp_path / "a.yaml")
    content = yaml.safe_load((tmp_path / "a.yaml").read_text()) | changes
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(content))
    load_or_user_error(tmp_path / "a.yaml")


@given(st.one_of(st.binary(max_size=60), st.text(st.sampled_from("[]{}:-!&*?|>'\"#, \n\tab1.~"), max_size=40)))
@example("a: 2001-99-99")
@example("a: !!bool x")
@example("a: !!timestamp x")
@example("a: &a [*a]")
@example("num_experts: &a [*a]")
@example("? [1]\n: 2")
@example("[" * 3000)
@example("a: 0x" + "f" * 9000)
@example("a: " + "9" * 9000)
@IN_ONE_FOLDER
def test_any_text_is_one_line(tmp_path: Path, text: str | bytes) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    load_or_user_error(path)


FILE_KEYS = ["layer_scores", "layer_similarities", "hidden_size", "mlp_parameters"]
OPTIONS = [
    "",
    "--total-experts 4",
    "--scale log",
    "--max-added-parameters 40",
    "--strategy layer-similarity --budget 5",
]


@given(st.dictionaries(st.sampled_from(FILE_KEYS), ANYTHING), st.sampled_from(OPTIONS))
@IN_ONE_FOLDER
def test_any_scores_file_is_taken_or_one_line(tmp_path: Path, content: dict[str, Any], options: str) -> None:
    path = tmp_path / "scores.json"
    path.write_text(json.dumps({"layer_scores": [1, 2, 3]} | content, default=str))
    taken_or_one_line(path, *options.split())


@given(st.binary(max_size=40))
@IN_ONE_FOLDER
def test_any_bytes_are_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "scores.json").write_bytes(content)
    taken_or_one_line(tmp_path / "scores.json")


def taken_or_one_line(path: Path, *options: str) -> None:
    result = run_allocate(path, *options, "--output", path.with_name("allocation.yaml"))
    if result.exception is None:
        Allocation.load(path.with_name("allocation.yaml"))
    else:
        assert isinstance(result.exception, UserError)
        assert len(str(result.exception).splitlines()) == 1
