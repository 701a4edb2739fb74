"""Processes that share the jobs of a pass; what they write does not depend on how many there are."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import connection
from types import FrameType
from typing import Any, Protocol, TypeVar

from rich.console import Console
from rich.progress import TaskID

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.progress import Progress

SECONDS_BETWEEN_LOOKS = 0.2


class Job(Protocol):
    """What one call of a worker does."""

    @property
    def done(self) -> object:
        """The file that is there when it is done."""


SomeJob = TypeVar("SomeJob", bound=Job)


class Workers:
    """Runs jobs in processes and shows how far they are.

    Args:
        count: How many processes; one runs the jobs in this process.
        console: Where the progress is shown.
        progress: Whether it is.
    """

    def __init__(self, count: int, console: Console, progress: bool = True) -> None:
        self._count = count
        self._pool: ProcessPoolExecutor | None = None
        self._progress = Progress(console, progress)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Keep the processes while the block runs, and stop them at its end, whatever ended it.

        Raises:
            UserError: if a process was killed.
        """
        try:
            with self._progress:
                yield
        except BrokenProcessPool as error:
            raise UserError(
                "a worker was killed, perhaps because memory ran out; run the command again with fewer --workers, it "
                "goes on from here"
            ) from error
        finally:
            if self._pool is not None:
                self._pool.shutdown(wait=True, cancel_futures=True)

    def run(
        self, function: Callable[[SomeJob], None], jobs: Sequence[SomeJob], sizes: Sequence[int], description: str
    ) -> None:
        """Run a function of a module on all jobs, in any order; raises what the first failing one raises.

        Args:
            function: Called in the processes.
            jobs: Its arguments.
            sizes: Share of each in the work, for the progress; the function says by `report` what is done.
            description: Shown beside the progress.
        """
        task = self._progress.add_task(description, total=sum(sizes))
        if self._count == 1 or len(jobs) <= 1:
            _reports.to = lambda done: self._progress.advance(task, done)
            try:
                for job in jobs:
                    function(job)
            finally:
                _reports.to = _nowhere
        else:
            self._run_in_processes(function, jobs, task)
        self._progress.remove_task(task)

    def _run_in_processes(self, function: Callable[[SomeJob], None], jobs: Sequence[SomeJob], task: TaskID) -> None:
        if self._pool is None:
            # Not by fork, which would copy the locks of the thread that draws the progress.
            context = multiprocessing.get_context("spawn")
            self._done = context.Value("Q")
            self._pool = ProcessPoolExecutor(self._count, context, initializer=_start, initargs=(self._done,))
        pool = self._pool
        self._done.value = 0
        with _interrupts_held() as let_through:
            with _blocked_interrupts():
                pending = {pool.submit(function, job) for job in jobs}
            try:
                while pending:
                    finished, pending = wait(pending, SECONDS_BETWEEN_LOOKS, FIRST_COMPLETED)
                    for future in finished:
                        future.result()
                    let_through()
                    self._progress.update(task, completed=self._done.value)
            finally:
                for future in pending:
                    future.cancel()

    def wait_for(self, function: Callable[[], None], description: str) -> None:
        """Call a function in this process, and show that it is running."""
        task = self._progress.add_task(description, total=None)
        function()
        self._progress.remove_task(task)

    def counter(self, description: str) -> Callable[[int], None]:
        """A function that takes how many more there are, and shows their number."""
        task: list[TaskID] = []

        def count(more: int) -> None:
            if not task:
                task.append(self._progress.add_task(description, total=None))
            self._progress.advance(task[0], more)
            done = self._progress.tasks[self._progress.task_ids.index(task[0])].completed
            self._progress.update(task[0], description=f"{description}: {done:,.0f}")

        return count


def default_workers() -> int:
    """As many as this process may use cores."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def report(done: int) -> None:
    """Say in a job how much more of its size is done; the sizes are those that `Workers.run` was given."""
    _reports.to(done)


def _nowhere(_done: int) -> None:
    pass


@dataclass
class _Reports:
    """Where the reports of this process's jobs go."""

    to: Callable[[int], None]


_reports = _Reports(_nowhere)


@contextmanager
def _interrupts_held() -> Iterator[Callable[[], None]]:
    """Hold Ctrl-C back until the yielded function is called, or the block has ended.

    Amid a pool's calls it would leave a lock taken for which the pool's thread then waits for ever.
    """
    held: list[tuple[int, FrameType | None]] = []
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler) or threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return

    def let_through() -> None:
        if held:
            handler(*held.pop())

    signal.signal(signal.SIGINT, lambda number, frame: held.append((number, frame)))
    try:
        yield let_through
    finally:
        signal.signal(signal.SIGINT, handler)
    let_through()


@contextmanager
def _blocked_interrupts() -> Iterator[None]:
    """Processes started in the block never see a Ctrl-C, not even while they import."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])


def _start(total: Any) -> None:
    """Report to the first process, and end with it, however it ends.

    Args:
        total: A shared number to which all workers add what they have done.
    """

    def add(done: int) -> None:
        with total.get_lock():
            total.value += done

    _reports.to = add
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    parent = multiprocessing.parent_process()
    if parent is not None:
        sentinel = parent.sentinel

        def end_with_it() -> None:
            connection.wait([sentinel])
            os._exit(1)

        threading.Thread(target=end_with_it, daemon=True).start()
