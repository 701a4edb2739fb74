"""`allocation.yaml`: what is written comes back, and what is wrong is named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from neuronmoe_plugins.allocation.allocation import Allocation
from neuronmoe_plugins.errors import UserError

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
)


def test_round_trip(tmp_path: Path) -> None:
    for allocation in (ALLOCATION, replace(ALLOCATION, source=None, targets=[], note="why")):
        allocation.save(tmp_path / "new" / "allocation.yaml")
        assert Allocation.load(tmp_path / "new" / "allocation.yaml") == allocation
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["allocation.yaml"]


def test_what_other_programs_read(tmp_path: Path) -> None:
    ALLOCATION.save(tmp_path / "allocation.yaml")
    content = yaml.safe_load((tmp_path / "allocation.yaml").read_text())
    assert list(content)[:2] == ["num_experts", "total_experts"]
    assert content["num_experts"] == [6, 1, 2]
    assert content["total_experts"] == 9
    assert content["targets"] == ["no", "el"]


def test_failed_save_keeps_the_earlier_file(tmp_path: Path) -> None:
    (tmp_path / "allocation.yaml").mkdir()
    (tmp_path / "allocation.yaml" / "mine").touch()
    with pytest.raises(UserError, match=r"allocation\.yaml cannot be written"):
        ALLOCATION.save(tmp_path / "allocation.yaml")
    assert [path.name for path in tmp_path.iterdir()] == ["allocation.yaml"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_experts": []}, r"num_experts is \[\]; it must be a list of whole numbers"),
        ({"num_experts": [6, 0, 3]}, "num_experts is .* must be a list of whole numbers, 1 or more"),
        ({"num_experts": [6, True, 2]}, "num_experts is"),
        ({"num_experts": "6,1,2"}, "num_experts is '6,1,2'"),
        ({"num_experts": [6, 1, 1]}, "total_experts is 9, but num_experts sums to 8"),
        ({"layer_scores": [1.0]}, "num_experts has 3 layers, layer_scores 1"),
        ({"layer_scores": ["a", 1, 2]}, "layer_scores is"),
        ({"targets": [False]}, r"targets is \[False\]; it must be a list of languages \(in quotes\)"),
        ({"source": None, "sauce": 1}, "unknown key.* sauce"),
        ({"rounding": 1}, "rounding is 1"),
    ],
)
def test_wrong_content_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "allocation.yaml"
    ALLOCATION.save(path)
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | change))
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
