"""A job that ends its process as the system does when memory runs out."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass


@dataclass(frozen=True)
class DyingJob:
    """Never done."""

    done: object = None


def die(job: DyingJob) -> None:
    """Kill this process."""
    os.kill(os.getpid(), signal.SIGKILL)
