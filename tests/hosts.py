"""Every tested set of hosts in an environment of its own, as `make test-hosts` builds and runs it.

    python -m tests.hosts [--environments FOLDER] [--results FOLDER] [--only tuner,…] [SET…]

A set is installed by uv as its users have it, without this package; then this package is added, which must leave every
version as it is; then pytest runs in it. What came of it is in RESULTS/SET.json, and all of it in the table at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from xml.etree import ElementTree

import rich

from neuronmoe_plugins.tables import Table, print_table
from neuronmoe_plugins.tested_sets import HostSet, tested_sets

ROOT = Path(__file__).parents[1]
UV = str(Path(sys.executable).with_name("uv"))
SOURCE = "LLAMAFACTORY_SOURCE"
EXTRAS = {"training": "train", "evaluation": "eval"}
LIMIT = 900
"""Seconds for the tests of a set."""

FILES = {
    "tuner": [
        *(
            f"tests/tuner/test_{name}.py"
            for name in (
                "lifecycle",
                "lifecycle_matrix",
                "saved_beside",
                "loading",
                "golden",
                "extension",
                "feed_forward",
                "attention",
            )
        ),
        "tests/integrations/test_transformers_trainer.py",
        "tests/export/test_own.py",
    ],
    "training": [f"tests/integrations/llamafactory/test_{name}.py" for name in ("train", "plain_lora")],
    "evaluation": [f"tests/lm_eval_tasks/test_{name}.py" for name in ("mmlu_command", "paper_groups")],
}
"""What runs in a set -> the files of tests."""


class SetError(Exception):
    """Why a set cannot be built or run, and whether that makes it "failed" or "skipped"."""

    def __init__(self, reason: str, outcome: str = "failed") -> None:
        super().__init__(reason)
        self.outcome = outcome


@dataclass
class Result:
    """What came of a set.

    Attributes:
        name: Of the set.
        outcome: "passed", "failed" or "skipped".
        reason: Why, where the tests alone do not say it.
        seconds: Building it and running its tests took.
        tests: A test's name -> what pytest says of it, with the first line of the reason.
    """

    name: str
    outcome: str = "passed"
    reason: str = ""
    seconds: float = 0.0
    tests: dict[str, str] = field(default_factory=dict)

    def counts(self) -> str:
        """How many tests passed, failed and were skipped."""
        found = Counter(outcome.split(":")[0] for outcome in self.tests.values())
        return ", ".join(f"{number} {outcome}" for outcome, number in sorted(found.items()))


def main(arguments: Sequence[str] | None = None) -> int:
    """Build and run sets; returns 1 if one has failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.hosts")
    parser.add_argument("sets", nargs="*", metavar="SET", help="all, unless some are named")
    parser.add_argument("--environments", type=Path, default=ROOT / ".venv-hosts")
    parser.add_argument("--results", type=Path, default=ROOT / "runs" / "test-hosts")
    parser.add_argument("--only", default=",".join(FILES), help="what to run in them")
    options = parser.parse_args(arguments)
    known = {own.name: own for own in tested_sets()}
    if unknown := [name for name in options.sets if name not in known]:
        parser.error(f"no set is named {unknown[0]}; there are: {', '.join(known)}")
    options.results.mkdir(parents=True, exist_ok=True)
    results = []
    for name in options.sets or known:
        result = run_set(known[name], options.environments.resolve() / name, options.only.split(","))
        (options.results / f"{name}.json").write_text(json.dumps(asdict(result), indent=1, ensure_ascii=False) + "\n")
        results.append(result)
    print_table(rich.get_console(), _table(results))
    return int(any(result.outcome == "failed" for result in results))


def _table(results: Sequence[Result]) -> Table:
    header = ("set", "outcome", "tests", "seconds", "why")
    rows = [
        (result.name, result.outcome, result.counts(), f"{result.seconds:.0f}", "\n".join(_reasons(result)))
        for result in results
    ]
    return Table("", header, rows, words=(0, 1, 2, 4))


def _reasons(result: Result) -> list[str]:
    """In short; the names of the tests are in the set's file."""
    found = Counter(outcome for outcome in result.tests.values() if outcome != "passed")
    return [result.reason] * bool(result.reason) + [f"{number} {why[:300]}" for why, number in found.items()]


def run_set(own: HostSet, environment: Path, only: Sequence[str]) -> Result:
    """Build a set and run its tests."""
    result, start = Result(own.name), time.monotonic()
    print(f"== {own.name}", flush=True)  # noqa: T201
    try:
        build(own, environment)
        files = [file for name in own.runs if name in only for file in FILES[name]]
        result.tests = run_tests(environment, files)
        if any(outcome.startswith("failed") for outcome in result.tests.values()):
            result.outcome = "failed"
    except SetError as error:
        result.outcome, result.reason = error.outcome, str(error)
    result.seconds = round(time.monotonic() - start, 1)
    return result


def build(own: HostSet, environment: Path) -> None:
    """Install the hosts, then this package beside them.

    Raises:
        SetError: if its Python or its source is not here, if something cannot be installed, or if this package changes
            what is installed.
    """
    requirements = _requirements(own)
    python = environment / "bin" / "python"
    if not python.exists():
        _uv("venv", "--quiet", "--python", _python(own.python), str(environment))
    install = ("pip", "install", "--python", str(python), "--override", str(ROOT / "overrides.txt"))
    _uv(*install, *requirements, "pytest")
    for library in environment.glob("lib/python*/site-packages/torchaudio/lib/*.so"):
        library.unlink()  # built for CUDA; it does not load beside a CPU build of torch
    found = _installed(python)
    if wrong := [f"{name} {found.get(name)}" for name, pin in own.pins.items() if found.get(name) != pin]:
        raise SetError(f"installed: {', '.join(wrong)}")
    extras = ",".join(EXTRAS[name] for name in own.runs if name in EXTRAS)
    this_package = ("--editable", f"{ROOT}[{extras}]")
    if replaced := _replaced(_uv(*install, "--dry-run", *this_package)):
        raise SetError(f"installing this package would replace {', '.join(replaced)}")
    _uv(*install, *this_package)


def _requirements(own: HostSet) -> list[str]:
    pins = dict(own.pins)
    requirements = []
    if own.from_source:
        del pins["llamafactory"]
        if not (source := os.environ.get(SOURCE)):
            raise SetError(f"its LLaMA-Factory is on no index: {SOURCE} must name a folder with its source", "skipped")
        requirements = [source]
    return requirements + [f"{'lm-eval[hf]' if name == 'lm-eval' else name}=={pin}" for name, pin in pins.items()]


def _python(version: str) -> str:
    """The Python that a variable names, as PYTHON312, or one on PATH."""
    variable = f"PYTHON{version.replace('.', '')}"
    wanted = os.environ.get(variable, version)
    found = subprocess.run([UV, "python", "find", "--no-python-downloads", wanted], capture_output=True, text=True)
    if found.returncode:
        raise SetError(f"there is no Python {version}: put it on PATH, or its path into {variable}", "skipped")
    return found.stdout.strip()


def _uv(*words: str) -> str:
    """What uv says."""
    done = subprocess.run([UV, *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise SetError(f"uv {' '.join(words[:2])}: {' '.join(done.stdout.split())[-500:]}")
    return done.stdout


def _installed(python: Path) -> dict[str, str]:
    """Distribution -> version, without a local part as in 2.13.0+cpu."""
    listed = json.loads(_uv("pip", "list", "--quiet", "--format", "json", "--python", str(python)))
    return {entry["name"]: entry["version"].split("+")[0] for entry in listed}


def _replaced(dry_run: str) -> list[str]:
    """What an installation would take away, this package itself apart."""
    taken = [line.strip()[2:] for line in dry_run.splitlines() if line.strip().startswith("- ")]
    return [name for name in taken if not name.startswith("neuronmoe-plugins")]


def run_tests(environment: Path, files: Sequence[str]) -> dict[str, str]:
    """Run files of tests in an environment; returns what came of each.

    Raises:
        SetError: if they take too long, or are not run to the end.
    """
    report, binaries = environment / "report.xml", environment / "bin"
    command = [str(binaries / "python"), "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *files]
    path = f"{binaries}{os.pathsep}{os.environ['PATH']}"
    settings = os.environ | {"PATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    try:
        code = subprocess.run(command, cwd=ROOT, env=settings, timeout=LIMIT).returncode
    except subprocess.TimeoutExpired as error:
        raise SetError(f"its tests take more than {LIMIT} s") from error
    if code not in (0, 1):  # passed, and some failed
        raise SetError(f"pytest ends with code {code}; it has said above what is wrong")
    cases = ElementTree.parse(report).iter("testcase")
    return {f"{case.get('classname')}.{case.get('name')}": _outcome(case) for case in cases}


def _outcome(case: ElementTree.Element) -> str:
    for tag, outcome in (("failure", "failed"), ("error", "failed"), ("skipped", "skipped")):
        if (found := case.find(tag)) is not None:
            return f"{outcome}: {(found.get('message') or 'no message').splitlines()[0]}"
    return "passed"


if __name__ == "__main__":
    sys.exit(main())
