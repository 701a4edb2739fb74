"""The processes that share an analysis, as torchrun starts them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from neuronmoe_plugins.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")
# Processes wait for the slowest one's share; torchrun ends all of them when one fails.
TIMEOUT = timedelta(days=7)


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
