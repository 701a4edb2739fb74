"""How far a long command is, on standard error: bars with the time left; in a log, a line now and then."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import rich.progress
from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from neuronmoe_plugins.tables import print_text

# In a log file or a pipe, where nothing can be redrawn.
SECONDS_BETWEEN_LINES = 30.0
Item = TypeVar("Item")


class Progress(rich.progress.Progress):
    """A bar for each task.

    Args:
        console: Where; a terminal has the bars, anything else a line every half minute.
        shown: Whether anything is shown.
    """

    def __init__(self, console: Console, shown: bool = True) -> None:
        columns = (BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        has_bars = shown and console.is_terminal
        super().__init__(
            TextColumn("{task.description}", markup=False),
            *columns,
            console=console,
            # The pace of all items since the first: of a study's steps none may end within rich's 30 seconds.
            speed_estimate_period=math.inf,
            get_time=time.monotonic,
            disable=not has_bars,
        )
        self._has_lines = shown and not has_bars
        self._last_line = time.monotonic()

    def update(self, task_id: rich.progress.TaskID, *args: Any, **fields: Any) -> None:
        """As rich does."""
        super().update(task_id, *args, **fields)
        self._say(task_id)

    def advance(self, task_id: rich.progress.TaskID, advance: float = 1) -> None:
        """As rich does."""
        super().advance(task_id, advance)
        self._say(task_id)

    def _say(self, task_id: rich.progress.TaskID) -> None:
        if not self._has_lines or time.monotonic() - self._last_line < SECONDS_BETWEEN_LINES:
            return
        self._last_line = time.monotonic()
        task = self._tasks[task_id]
        line = task.description
        if task.total and task.completed:
            line += f": {task.percentage:.0f} %"
        if task.time_remaining is not None:
            line += f", {_duration(task.time_remaining)} left"
        print_text(self.console, line)


def track(items: Sequence[Item], description: str, shown: bool) -> Iterator[Item]:
    """Go through items, and show on standard error how far that is."""
    with Progress(Console(stderr=True), shown) as progress:
        task = progress.add_task(description, total=len(items))
        for item in items:
            yield item
            progress.advance(task)


@contextmanager
def without_transformers_bars() -> Iterator[None]:
    """Without the bars of transformers for a model that is loaded or saved; downloads from the hub have theirs."""
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
    from transformers import modeling_gguf_pytorch_utils as of_gguf  # its bar is not of transformers' logging
    from transformers.utils import logging

    shown, of_hub = logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    logging.disable_progress_bar()
    bar: Any = of_gguf.tqdm
    of_gguf.tqdm = partial(bar, disable=True)
    if of_hub:
        enable_progress_bars()
    try:
        yield
    finally:
        of_gguf.tqdm = bar
        if shown:
            logging.enable_progress_bar()


def _duration(seconds: float) -> str:
    """About how long: "40 s", "12 min", "3 h 5 min"."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
