"""Reading an analysis folder that is damaged, half written or of another model ends in one line, never a crash."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.neurons.analysis import Analysis, write_analysis, write_neurons
from neuronmoe_plugins.neurons.metrics import Neuron

NEURONS = [Neuron("en", 0, "mlp.up_proj", 3, 0.9), Neuron("el", 1, "self_attn.q_proj", 0, 0.8)]
SUMMARY: dict[str, Any] = {
    "model": "m", "metric": "ap", "min_score": 0.5, "languages": ["en", "el"], "num_layers": 2,
    "units_per_module": {"mlp.up_proj": 4, "self_attn.q_proj": [2, 1]},
    "layer_counts": {"en": [1, 0], "el": [0, 1]},
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "analysis"
    path.mkdir()
    write_analysis(path, Analysis(NEURONS, SUMMARY))
    return path


def test_whole_folder_is_read(folder: Path) -> None:
    analysis = Analysis.load(folder)
    assert analysis.neurons == NEURONS
    assert analysis.summary.items() >= SUMMARY.items()


def change_summary(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "summary.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no folder": (shutil.rmtree, "holds no analysis"),
    "no summary": (lambda f: (f / "summary.json").unlink(), r"holds no analysis \(no summary\.json\)"),
    "half a summary": (
        lambda f: (f / "summary.json").write_text((f / "summary.json").read_text()[:50]),
        r"summary\.json is not JSON \(.*\); run `neuronmoe analyze` again$",
    ),
    "a list": (lambda f: (f / "summary.json").write_text("[]"), "is no summary of an analysis"),
    "no neurons": (lambda f: (f / "neurons.parquet").unlink(), r"neurons\.parquet is not a neuron table"),
    "half the neurons": (
        lambda f: (f / "neurons.parquet").write_bytes((f / "neurons.parquet").read_bytes()[:99]),
        r"neurons\.parquet is not a neuron table",
    ),
    "other neurons": (
        lambda f: write_neurons(f / "neurons.parquet", NEURONS[:1]),
        r"neurons\.parquet is not the table that .*summary\.json belongs to",
    ),
    "an older version's": (change_summary(files=None), "'files' is missing"),
    "fewer layers": (
        change_summary(num_layers=1),
        "of another analysis: it has neuron 0 of self_attn.q_proj in layer 1",
    ),
    "other modules": (change_summary(units_per_module={"mlp.fc1": 9}), "of another analysis: .* mlp.up_proj"),
    "fewer units": (
        change_summary(units_per_module={"mlp.up_proj": 3}),
        "of another analysis: .*neuron 3 of mlp.up_proj",
    ),
    "other languages": (change_summary(languages=["en", "tr"]), "of another analysis: .* for el"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named(folder: Path, kind: str) -> None:
    damage, message = DAMAGE[kind]
    damage(folder)
    with pytest.raises(UserError, match=message) as caught:
        Analysis.load(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
    assert "neuronmoe analyze" in str(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 9) | st.floats() | st.text(max_size=5),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=5,
)


VALUES = {
    "languages": JSON,
    "num_layers": JSON,
    "files": JSON,
    "units_per_module": JSON | st.dictionaries(st.sampled_from(["mlp.up_proj", "self_attn.q_proj"]), JSON),
}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None)
@given(change=st.sampled_from(sorted(VALUES)).flatmap(lambda key: st.tuples(st.just(key), VALUES[key])))
def test_any_value_is_read_or_refused(folder: Path, change: tuple[str, object]) -> None:
    path = folder / "summary.json"
    whole = path.read_text()
    try:
        path.write_text(json.dumps(json.loads(whole) | dict([change])))
        Analysis.load(folder)
    except UserError as error:
        assert str(folder) in str(error)
    finally:
        path.write_text(whole)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100, deadline=None)
@given(
    name=st.sampled_from(["summary.json", "neurons.parquet"]), content=st.binary(max_size=200), keep=st.integers(0, 60)
)
def test_any_bytes_are_refused(folder: Path, name: str, content: bytes, keep: int) -> None:
    path = folder / name
    whole = path.read_bytes()
    try:
        path.write_bytes(whole[:keep] + content)
        with pytest.raises(UserError, match="neuronmoe analyze"):
            Analysis.load(folder)
    finally:
        path.write_bytes(whole)
