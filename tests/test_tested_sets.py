"""The table of tested sets, and what else says the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from neuronmoe_plugins import tested_sets
from neuronmoe_plugins.errors import UserError

ROOT = Path(__file__).parents[1]
SETS = {own.name: own for own in tested_sets.tested_sets()}


@pytest.mark.parametrize(("file", "name"), [("constraints.txt", "lf-0.9.5"), ("constraints-newest.txt", "newest")])
def test_the_environments_of_make_test_are_tested_sets(file: str, name: str) -> None:
    lines = (ROOT / file).read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    own = SETS[name].pins
    assert {key: pins[key] for key in pins if key in own} == {key: own[key] for key in own if key in pins}
    assert pins.keys() - own.keys() == {"wrapt"} | ({"bitsandbytes"} if name == "newest" else set())


def test_what_runs_in_a_set_follows_from_what_is_in_it() -> None:
    assert SETS["lf-0.9.4"].runs == ("tuner", "training", "evaluation")
    assert SETS["python-3.13"].runs == ("tuner", "evaluation")
    assert [own.name for own in SETS.values() if own.from_source] == ["lf-0.9.6.dev0"]


def test_versions_are_in_their_order() -> None:
    versions = [str(version) for version in tested_sets.tested_versions("transformers")]
    assert versions.index("4.57.1") < versions.index("5.5.0") < versions.index("5.23.0")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{pins: {}}", "x: python is missing"),
        ("{python: '3.11', pins: {jax: 1.2.3}}", "x: pins: unknown key 'jax'"),
        ("{python: '3.11', pins: {torch: newest}}", "x: pins: torch: must be a version; got 'newest'"),
    ],
)
def test_a_wrong_entry_is_named(entry: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "sets.yaml"
    table.write_text(f"sets: {{x: {entry}}}")
    monkeypatch.setattr(tested_sets, "TABLE", table)
    with pytest.raises(UserError, match=message):
        tested_sets.tested_sets.__wrapped__()
