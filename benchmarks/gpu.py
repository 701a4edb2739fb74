"""All that a CUDA card can show in eight minutes, in order of worth: `python -m benchmarks.gpu` (`make gpu`).

For a bare Linux machine without a network: this file needs nothing but Python, and what the steps need is on the path
or comes from a folder of wheels. Each step is a process with its own time limit. Results, logs and `gpu.json`, with the
machine, the versions and how each step ended, are written as it goes, so that a run that is cut short leaves what it
had. `--dry-run` runs every step at a tiny size on the CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# What all steps import; torch, transformers and pytest bring the rest.
NEEDED = ("torch", "transformers", "peft", "pyarrow", "typer", "rich", "wrapt", "pytest")
ALL_TESTS = ("tests/integrations/llamafactory", "tests/tuner")
# A step that would have less is not started.
LEAST_SECONDS = 20
# After each of an interrupt, at which pytest still writes what it found, SIGTERM and SIGKILL.
SECONDS_TO_STOP = 10
VERSIONS = "import json; from benchmarks.results import environment; print(json.dumps(environment()))"


@dataclass(frozen=True)
class Step:
    """One thing to run.

    Attributes:
        name: Of its log.
        command: What `python -m` gets; `{result}` stands for the folder's path and NAME_cuda, or NAME_cpu.
        limit: Seconds that it may take.
        tiny: What is added to the command in a dry run.
        needs: What must be importable for it beside what all need.
        processes: How many pytest-xdist shares its tests among, if it is there.
    """

    name: str
    command: tuple[str, ...]
    limit: int
    tiny: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    processes: int = 1


def tests(name: str, limit: int, *folders: str, needs: tuple[str, ...] = ()) -> Step:
    """The step of the files in these folders of `tests` that have tests for a CUDA device."""
    files = [path for folder in folders for path in sorted((ROOT / "tests" / folder).rglob("test_*.py"))]
    names = [str(path.relative_to(ROOT)) for path in files if "mark.gpu" in path.read_text(encoding="utf-8")]
    command = ("pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "--continue-on-collection-errors", *names)
    return Step(name, (*command, "--junitxml={result}.xml"), limit, needs=needs)


def benchmark(name: str, limit: int, *options: str, tiny: str, needs: tuple[str, ...] = ()) -> Step:
    """The step of a benchmark, and what makes it tiny; `decode --graph` is the module and what makes it another."""
    module, *more = name.split()
    name = "_".join([module, *(option.strip("-") for option in more)])
    command = (f"benchmarks.{module}", "--output", "{result}.json", *more, *options)
    return Step(name, command, limit, tuple(shlex.split(tiny)), needs)


# In order of worth, what has no figure yet before what has one: what comes late may get no time. Limits are a third
# more than a step took on an H100, and guesses for those that have not run there. A study's arm is one more entry.
STEPS = (
    tests("gpu_tests", 60, "tuner", "neurons"),
    benchmark("decode --graph", 50, tiny="--shape tiny --runs 1 --new-tokens 4 --threads 1"),
    benchmark("decode", 60, "--runs", "3", tiny="--shape tiny --runs 1 --new-tokens 4 --threads 1"),
    # All layers with float32 experts and AdamW would need 80 GB.
    benchmark("training_step", 120, "--layers", "8", tiny="--shape tiny --runs 1 --tokens 64", needs=("llamafactory",)),
    benchmark("average_precision", 50, "--runs", "3", tiny="--units 20 --runs 1", needs=("sklearn",)),
    benchmark("specialisation", 90, "--runs", "3", tiny="--shape tiny --runs 1 --sentences 6"),
    benchmark("experts", 100, "--seconds", "0.5", "--profile", tiny="--cases '64 tokens' --seconds 0"),
    benchmark("whole_step", 100, "--runs", "3", tiny="--shape tiny --runs 1 --tokens 64"),
    benchmark("analysis", 80, "--runs", "3", tiny="--shape tiny --runs 1 --sentences 12"),
    tests("host_tests", 110, "integrations", needs=("llamafactory", "liger_kernel")),
    # All that is tested on a CPU, too. By name, so that a log that is cut off tells what had failed.
    Step(
        "all_tests",
        ("pytest", "-v", "-p", "no:cacheprovider", "--junitxml={result}.xml", *ALL_TESTS),
        480,
        ("--collect-only",),
        ("llamafactory",),
        processes=4,
    ),
)


class Runner:
    """Runs steps one after another until the time is over, and writes `gpu.json` before and after each.

    Args:
        folder: Where results, logs and `gpu.json` go.
        limit: Seconds for all.
        dry_run: Whether all is tiny and on the CPU.
        site: A folder of unpacked wheels.
    """

    def __init__(self, folder: Path, limit: float, dry_run: bool, site: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._dry_run = folder.resolve(), dry_run
        self._end = time.monotonic() + limit
        path = [str(site), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._environment = os.environ | {"PYTHONPATH": os.pathsep.join(path), "HF_HUB_OFFLINE": "1"}
        self._environment.setdefault("TOKENIZERS_PARALLELISM", "false")
        # One card, or none: the trainers would take all that they see.
        card = "" if dry_run else os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
        self._environment["CUDA_VISIBLE_DEVICES"] = card
        self.record: dict[str, Any] = {"limit": limit, "dry_run": dry_run, "steps": {}}

    def describe(self) -> None:
        """Find out the machine and the versions, in a process that sees what the steps see."""
        command = [sys.executable, "-c", VERSIONS]
        found = subprocess.run(command, cwd=ROOT, env=self._environment, capture_output=True, text=True)
        if found.returncode:
            self.record["error"] = found.stderr.strip().splitlines()[-1:]
        else:
            self.record |= json.loads(found.stdout.splitlines()[-1])
        self._save()

    def run(self, step: Step) -> None:
        """Run a step, if there is time and all that it needs, and record how it ended."""
        limit = min(step.limit, self._end - time.monotonic())
        missing = [name for name in step.needs if find_spec(name) is None]
        if missing:
            self._note(step, how=f"not run: no {', '.join(missing)}")
            return
        if limit < min(LEAST_SECONDS, step.limit):
            self._note(step, how="not run: no time left")
            return
        self._note(step, how="running", limit=round(limit))
        start = time.monotonic()
        how = self._wait(step, limit)
        self._note(step, how=how, seconds=round(time.monotonic() - start, 1), tail=self._tail(step))

    def _wait(self, step: Step, limit: float) -> str:
        result = str(self._folder / f"{step.name}_{'cpu' if self._dry_run else 'cuda'}")
        words = [*step.command, *(step.tiny if self._dry_run else ())]
        if step.processes > 1 and find_spec("xdist"):
            words += ["--numprocesses", str(step.processes), "--dist", "loadfile"]
        command = [sys.executable, "-m", *(word.replace("{result}", result) for word in words)]
        with (self._folder / f"{step.name}.log").open("wb") as log:
            process = subprocess.Popen(
                command, cwd=ROOT, env=self._environment, stdout=log, stderr=log, start_new_session=True
            )
            try:
                code = process.wait(limit)
            except subprocess.TimeoutExpired:
                return "out of time"
            finally:
                _stop(process)
        return "done" if code == 0 else f"failed: exit code {code}"

    def _tail(self, step: Step) -> list[str]:
        """The last lines of a log that say something."""
        lines = (self._folder / f"{step.name}.log").read_text(encoding="utf-8", errors="replace").splitlines()
        return [line for line in lines if any(map(str.isalnum, line))][-3:]

    def _note(self, step: Step, **facts: Any) -> None:
        self.record["steps"][step.name] = facts
        self._save()
        shown = ", ".join(f"{name} {value}" for name, value in facts.items() if name not in ("how", "tail"))
        sys.stdout.write(f"{step.name}: {facts['how']}" + (f" ({shown})\n" if shown else "\n"))
        sys.stdout.flush()

    def _save(self) -> None:
        path = self._folder / "gpu.json"
        new = path.with_suffix(".new")
        new.write_text(json.dumps(self.record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        new.replace(path)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End what is left of a process and of those that it started."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(SECONDS_TO_STOP)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def unpack(wheels: Path, site: Path) -> None:
    """Install all wheels of a folder, and nothing else, into another."""
    options = ("--quiet", "--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "--target", str(site))
    found = sorted(map(str, wheels.glob("*.whl")))
    if not found:
        sys.exit(f"{wheels}: no wheels in it")
    subprocess.run([sys.executable, "-m", "pip", "install", *options, *found], check=True)


def main(words: Sequence[str] | None = None, steps: Sequence[Step] = STEPS) -> int:
    """Run the steps; the exit code is 1 if one of those that were run has failed, 2 if none could be run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="the folder of results, logs and gpu.json")
    parser.add_argument("--limit", type=float, default=480, help="seconds for all (default: %(default)s)")
    parser.add_argument("--wheels", type=Path, help="a folder with wheels of what this Python lacks")
    parser.add_argument("--only", nargs="+", choices=[step.name for step in steps], help="only these steps")
    parser.add_argument("--dry-run", action="store_true", help="every step at a tiny size, on the CPU")
    arguments = parser.parse_args(words)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with tempfile.TemporaryDirectory() as site:
        if arguments.wheels:
            unpack(arguments.wheels, Path(site))
        sys.path.insert(0, site)
        missing = [name for name in NEEDED if find_spec(name) is None]
        if missing:
            sys.stderr.write(f"missing: {', '.join(missing)}; put their wheels into a folder and give it as --wheels\n")
            return 2
        runner = Runner(arguments.output, arguments.limit, arguments.dry_run, Path(site))
        runner.describe()
        for step in steps:
            if not arguments.only or step.name in arguments.only:
                runner.run(step)
    ends = [step["how"] for step in runner.record["steps"].values()]
    return int(any(not how.startswith(("done", "not run")) for how in ends))


if __name__ == "__main__":
    sys.exit(main())
