"""Runs a study: several runs at once, each step once, in an order in which what others wait for comes first."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path

from filelock import FileLock, Timeout
from rich.console import Console

from neuronmoe_plugins.errors import UserError, disk_error
from neuronmoe_plugins.evaluation import write_tasks
from neuronmoe_plugins.files import writing
from neuronmoe_plugins.progress import SECONDS_BETWEEN_LINES, Progress
from neuronmoe_plugins.steps import Start, run_steps, stop_commands
from neuronmoe_plugins.study.forks import start_forked
from neuronmoe_plugins.study.runs import Run, count_runs, count_steps, known_runs
from neuronmoe_plugins.study.trainings import Training

FULL = ("No space left on device", "File too large")
GOES_ON = "the same command goes on from what is done"


def require_fresh(trainings: Sequence[Training]) -> None:
    """Raise `UserError` naming the runs that were done with other settings than the spec's."""
    runs = [run for training in trainings for run in known_runs(training)]
    stale = [(run, step) for run in runs for step, state in zip(run.steps, run.states, strict=True) if state == "stale"]
    if stale:
        found = [f"{run.name} ({step.name})" for run, step in stale]
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        raise UserError(
            f"{trainings[0].spec.path} has changed since these were done: {'; '.join(found[:3])}{more}; add --force to "
            "do them again, or name another --output"
        )


def run_study(trainings: Sequence[Training], jobs: int, shown: bool, finished: Callable[[], object]) -> None:
    """Do all that is not done.

    Args:
        trainings: What to train, of one study.
        jobs: How many runs at once.
        shown: Whether progress is shown.
        finished: Called after every run.

    Raises:
        UserError: after all other runs, for those that failed; at once for a base model that cannot be evaluated, and
            for a disk that is full. What is done stays done.
    """
    spec, output = trainings[0].spec, trainings[0].output
    texts = {name: file for code in spec.targets for name, file in spec.texts_of(code).items()}
    with writing(f"--output {output}"):
        write_tasks(output / "tasks", texts)
    _Pool(trainings, jobs, finished).run(shown)


class _Pool:
    """The runs that run and that have failed."""

    def __init__(self, trainings: Sequence[Training], jobs: int, finished: Callable[[], object]) -> None:
        self.trainings, self.jobs, self.finished = trainings, jobs, finished
        self.devices = _devices(jobs, {**os.environ, **trainings[0].spec.environment}.get("CUDA_VISIBLE_DEVICES"))
        self.running: dict[Future[None], Run] = {}
        self.failed: dict[Path, UserError] = {}
        self.stopping = False
        self.block = ExitStack()

    @cached_property
    def start(self) -> Start:
        """How all programs are started, of which the first needs it."""
        return start_forked(self.block, self.trainings[0].spec.environment)

    def run(self, shown: bool) -> None:
        """Go on until nothing is left."""
        with self.block, ThreadPoolExecutor(self.jobs) as pool, Progress(Console(stderr=True), shown) as progress:
            task = progress.add_task("", total=sum(map(count_steps, self.trainings)))
            try:
                while True:
                    for run in self._next_runs():
                        device = self.devices.pop() if self.devices else None
                        started = replace(run, device=device, start=self.start)
                        self.running[pool.submit(self._run, started)] = started
                    states = [run.states for training in self.trainings for run in known_runs(training)]
                    steps = sum(own.count("done") for own in states)
                    progress.update(task, completed=steps, description=self._says(states))
                    if not self.running:
                        break
                    self._wait()
            except BaseException:
                self.stopping = True
                stop_commands()
                while wait(self.running, 0.5).not_done:  # one may only just have started its program
                    stop_commands()
                raise
        if self.failed:
            first, *others = self.failed.values()
            more = f" ({len(others)} other runs failed, too)" if others else ""
            raise UserError(f"{first}{more}; {GOES_ON}")

    def _says(self, states: Sequence[Sequence[str]]) -> str:
        """How far it is."""
        done = sum(set(own) == {"done"} for own in states)
        left = sum(map(count_runs, self.trainings)) - done - len(self.running) - len(self.failed)
        names = "; ".join(run.name for run in self.running.values())
        failed = f", {len(self.failed)} failed" if self.failed else ""
        return f"{done} runs done{failed}, {len(self.running)} running ({names}), {left} left"

    def _next_runs(self) -> list[Run]:
        """As many as may start now; nothing is trained before the base model is evaluated, which finds bad tasks."""
        taken = {run.folder for run in self.running.values()} | self.failed.keys()
        ready: list[Run] = []
        for training in self.trainings:
            if not training.is_base and any(run.training.is_base for run in [*self.running.values(), *ready]):
                break
            ready += [run for run in known_runs(training) if run.folder not in taken and not run.is_done]
        return ready[: self.jobs - len(self.running)]

    def _run(self, run: Run) -> None:
        """Wait until no other call, perhaps on another machine, does this run; it is done then, or goes on here."""
        run.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(run.folder / ".lock")
        while not lock.is_locked:
            self._go_on()
            with suppress(Timeout):
                lock.acquire(timeout=1)
        try:
            steps = [replace(step, action=partial(self._go_on, step.action)) for step in run.steps]
            run_steps(steps, run.stamps, Console(quiet=True))
        finally:
            lock.release()

    def _go_on(self, action: Callable[[], object] = lambda: None) -> None:
        """Act unless the study was interrupted, whose programs have ended then."""
        if self.stopping:
            raise UserError("interrupted")
        action()

    def _wait(self) -> None:
        """Until a run ends, however it does, or it is time to say how far they are."""
        ended, _ = wait(self.running, SECONDS_BETWEEN_LINES, FIRST_COMPLETED)
        for future in ended:
            run = self.running.pop(future)
            if run.device is not None:
                self.devices.append(run.device)
            try:
                future.result()
            except OSError as error:
                raise UserError(f"{run.name}: {disk_error(error)}; {GOES_ON}") from error
            except UserError as error:
                if run.training.is_base or any(word in str(error) for word in FULL):
                    raise UserError(f"{run.name}: {error}; {GOES_ON}") from error
                self.failed[run.folder] = UserError(f"{run.name}: {error}")
            else:
                self.finished()


def _devices(jobs: int, given: str | None) -> list[str]:
    """The GPUs, all or those given, that runs share out, as often as there are runs for each; none for a single run."""
    if jobs == 1:
        return []
    import torch

    found = given.split(",") if given else list(map(str, range(torch.cuda.device_count())))
    return [found[job % len(found)] for job in reversed(range(jobs))] if found else []
