"""The table of tested sets, and what else says the same."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomllib
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import hosts
from hosts import EXTRAS
from neuronmoe_plugins import tested_sets
from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.tables import Table, as_markdown
from neuronmoe_plugins.tested_sets import HostSet

ROOT = Path(__file__).parents[1]
SETS = {own.name: own for own in tested_sets.tested_sets()}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
every_set = pytest.mark.parametrize("own", SETS.values(), ids=SETS)


def requirements() -> Iterator[Requirement]:
    """Ours, with those of the extras that users install."""
    extras = PROJECT["optional-dependencies"]
    for line in PROJECT["dependencies"] + [line for extra in (*EXTRAS.values(), "deepspeed") for line in extras[extra]]:
        yield Requirement(line)


@every_set
def test_the_bounds_allow_what_is_installed(own: HostSet) -> None:
    assert SpecifierSet(PROJECT["requires-python"]).contains(f"{own.python}.0")
    bounds = {canonicalize_name(requirement.name): requirement.specifier for requirement in requirements()}
    refused = [
        f"{name}{bounds[name]}: {pin}"
        for name, pin in own.pins.items()
        if name in bounds and not bounds[name].contains(pin, prereleases=True)
    ]
    assert not refused


@pytest.fixture(scope="module")
def uv() -> Path:
    """The installer, where it reaches the package index."""
    command = Path(sys.executable).with_name("uv")
    asked = [command, "pip", "compile", "--quiet", "--no-deps", "--python", sys.executable, "-"]
    done = subprocess.run(asked, input="pluggy", capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"the package index is not reached: {' '.join(done.stderr.split())[:200]}")
    return command


@every_set
def test_the_installer_leaves_it_as_it_is(own: HostSet, uv: Path, tmp_path: Path) -> None:
    """`make test-hosts` has the installer's dry run beside what is really installed; here it only chooses versions."""
    pins = {name: pin for name, pin in own.pins.items() if not (own.from_source and name == "llamafactory")}
    extras = [f"--extra={EXTRAS[name]}" for name in own.runs if name in EXTRAS]
    if own.from_source:  # it is on no index
        extras.remove("--extra=train")
    chosen = tmp_path / "chosen.txt"  # what it says is preferred, as what is installed is
    chosen.write_text("".join(f"{name}=={pin}\n" for name, pin in pins.items()))
    # With what the hosts themselves need it takes ten seconds, so one set stands for all.
    deep = [] if own.name == "lf-0.9.4" else ["--no-deps"]
    words = ["pip", "compile", "--quiet", "pyproject.toml", *extras, *deep, "--python", sys.executable]
    words += ["--python-version", own.python, "--override", "overrides.txt", "--output-file", str(chosen)]
    done = subprocess.run([uv, *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = dict(line.split("==") for line in chosen.read_text().splitlines() if line[:1].isalpha())
    assert {name: found[name] for name in pins if name in found} == {name: pins[name] for name in pins if name in found}
    assert {"torch", "transformers", "peft", "accelerate"} <= found.keys()


@pytest.mark.parametrize(("file", "name"), [("constraints.txt", "lf-0.9.5"), ("constraints-newest.txt", "newest")])
def test_the_environments_of_make_test_are_tested_sets(file: str, name: str) -> None:
    lines = (ROOT / file).read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    own = SETS[name].pins
    assert {key: pins[key] for key in pins if key in own} == {key: own[key] for key in own if key in pins}
    assert pins.keys() - own.keys() == {"wrapt"} | ({"bitsandbytes"} if name == "newest" else set())


def docs_table() -> str:
    """The sets in Markdown: four hosts in columns of their own, the others in one."""
    hosts = {"torch": "torch", "transformers": "transformers", "peft": "PEFT", "llamafactory": "LLaMA-Factory"}
    hosts |= {"lm-eval": "lm-eval"}
    rows = [
        [
            *(f"`{own.name}`", own.python),
            *(own.pins.get(name, "-") for name in hosts),
            ", ".join(f"{name} {pin}" for name, pin in own.pins.items() if name not in hosts) or "-",
            own.passed or "not yet",
        ]
        for own in SETS.values()
    ]
    header = ["set", "Python", *hosts.values(), "beside them", "passed"]
    return as_markdown(Table("", header, rows, words=range(len(header))))


def test_the_docs_have_the_table_and_what_is_broken() -> None:
    docs = (ROOT / "docs" / "hosts.md").read_text(encoding="utf-8")
    assert docs_table() in docs, f"docs/hosts.md must hold this table:\n{docs_table()}"
    for distribution, versions in tested_sets.broken_versions().items():
        for version, reason in versions.items():
            assert f"- {distribution} {version}: {reason}.\n" in docs


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


def test_a_set_that_cannot_be_built_here_is_skipped_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(hosts.SOURCE, raising=False)
    result = hosts.run_set(SETS["lf-0.9.6.dev0"], tmp_path, ["tuner"])
    reason = "its LLaMA-Factory is on no index: LLAMAFACTORY_SOURCE must name a folder with its source"
    assert (result.outcome, result.reason) == ("skipped", reason)


def test_what_an_installation_would_replace_is_read_off_the_dry_run() -> None:
    lines = " - neuronmoe-plugins==0.1.0\n - peft==0.17.1\n + peft==0.18.1\n + wrapt==1.17.3\n"
    assert hosts._replaced(f"Would uninstall 2 packages\n{lines}") == ["peft==0.17.1"]


def test_the_readme_shows_the_versions_of_the_sets() -> None:
    _, _, table = (ROOT / "README.md").read_text(encoding="utf-8").partition("| LLaMA-Factory | transformers |")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.partition("\n\n")[0].splitlines()[2:]]
    shown = {row[0]: [set(cell.split(", ")) for cell in row[1:]] for row in rows}
    expected: dict[str, list[set[str]]] = {}
    for own in SETS.values():
        host = own.pins.get("llamafactory", "none")
        row = expected.setdefault(
            f"main of August 2026 ({host})" if own.from_source else host, [set() for _ in range(4)]
        )
        for cell, version in zip(row, [own.pins[n] for n in ("transformers", "peft", "lm-eval")], strict=False):
            cell.add(version)
        row[-1].add(own.python)
    assert shown == expected
