"""The processes that share an analysis, as torchrun starts them, and the folder of what they have not finished."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.files import locked, move_files, read_json, write_json, writing
from neuronmoe_plugins.tables import print_text

Item = TypeVar("Item")
Result = TypeVar("Result")
# Processes wait for the slowest one's share; torchrun ends all of them when one fails.
TIMEOUT = timedelta(days=7)
# Other versions of these may compute other activations.
PACKAGES = ("neuronmoe-plugins", "torch", "transformers", "accelerate", "peft", "numpy")


@dataclass(frozen=True)
class Processes:
    """This process among those that share the work.

    Attributes:
        rank: Number of this process, from 0.
        world_size: How many there are.
        local_rank: Number of this process on its machine.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Processes:
        """What torchrun put into the environment; one process without it.

        Raises:
            UserError: for processes on several machines, which cannot share memory-mapped files.
        """
        if "TORCHELASTIC_RUN_ID" not in environment:
            return cls()
        if environment["LOCAL_WORLD_SIZE"] != environment["WORLD_SIZE"]:
            raise UserError("torchrun started processes on several machines; an analysis runs on one (--nnodes 1)")
        return cls(int(environment["RANK"]), int(environment["WORLD_SIZE"]), int(environment["LOCAL_RANK"]))

    @property
    def is_first(self) -> bool:
        """Whether this is the process that reads the corpora and writes the results."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """This process's part of the items, every `world_size`-th."""
        return items[self.rank :: self.world_size]

    def wait_for_all(self) -> None:
        """Return when every process has called this."""
        if self.world_size == 1:
            return
        import torch.distributed as dist

        if not dist.is_initialized():
            dist.init_process_group("gloo", timeout=TIMEOUT)
        dist.barrier()

    def first_first(self, action: Callable[[], Result]) -> Result:
        """Run `action` in the first process, and when that is done, in all others."""
        if not self.is_first:
            self.wait_for_all()
            return action()
        result = action()
        self.wait_for_all()
        return result


class WorkingFolder:
    """A hidden folder beside an analysis' output, or in it where that is a folder already, perhaps on another disk.

    Args:
        output: Where the analysis will be.
    """

    def __init__(self, output: Path) -> None:
        self._output = output
        self.path = output / ".partial" if output.is_dir() else output.with_name(f".{output.name}.partial")
        self._made_here = False

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other analyses away from this output.

        Raises:
            UserError: if there is one, or the output cannot be written.
        """
        with locked(self.path.with_name(f"{self.path.name}.lock"), self.path.parent, "analysis"):
            yield

    @contextmanager
    def kept_if_interrupted(self, announce: bool) -> Iterator[None]:
        """Lock the folder, and remove it at the end, but not if another call could go on from it.

        Args:
            announce: Say so on standard error if the user interrupts.

        Raises:
            UserError: as `locked` does.
        """
        with self.locked():
            try:
                yield
            except UserError as error:
                # What the same input would only run into again; work that a full disk or memory ended stays.
                if self._made_here and not (self.has_results and isinstance(error.__cause__, (OSError, RuntimeError))):
                    self.remove()
                raise
            except KeyboardInterrupt:
                if announce and self.has_results:
                    print_text(Console(stderr=True), f"Interrupted: the same command goes on from {self.path}")
                raise
            self.remove()

    def prepare(self, settings: Mapping[str, Any]) -> None:
        """Make the folder, or keep it if it is there from an interrupted analysis with the same settings.

        Args:
            settings: JSON values on which the activations depend.

        Raises:
            UserError: if it cannot be written.
        """
        plan = {**settings, "versions": {name: version(name) for name in PACKAGES}}
        earlier = None
        with suppress(OSError, ValueError):
            earlier = read_json(self.path / "plan.json")
        with writing(f"--output {self._output}"):
            if earlier != json.loads(json.dumps(plan)):
                shutil.rmtree(self.path, ignore_errors=True)
                self.path.mkdir()
                self._made_here = True
                write_json(self.path / "plan.json", plan)

    @contextmanager
    def new_output(self, last: str, outdated: Sequence[str] = ()) -> Iterator[Path]:
        """A folder to fill with results; when the block succeeds, they replace those in the output, each in one go.

        Args:
            last: Name of the file that is moved last.
            outdated: Names of earlier results that the new ones do not replace, removed before.

        Raises:
            UserError: if the output cannot be written.
        """
        staging = self.path / "output"
        shutil.rmtree(staging, ignore_errors=True)
        with writing(f"--output {self._output}"):
            staging.mkdir()
            yield staging
            self._output.mkdir(exist_ok=True)
            for name in outdated:
                (self._output / name).unlink(missing_ok=True)
            move_files(staging, self._output, last)

    @property
    def has_results(self) -> bool:
        """Whether another call could go on from it."""
        return any(self.path.glob("finished.*"))

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.path, ignore_errors=True)
