"""All benchmarks that suit the machine, and the table of their results: `python -m benchmarks`.

On a CPU they take ten minutes. With a GPU they take the shapes of a model of 3 billion parameters.
"""

from __future__ import annotations

import subprocess
import sys
import time

from benchmarks import table
from benchmarks.models import DEVICE

# Each in a process of its own, which the others cannot slow down or fill up.
CPU_RUNS: tuple[tuple[str, ...], ...] = (
    ("import_time", "--runs", "5"),
    ("average_precision", "--runs", "5"),
    ("analysis",),
    ("specialisation", "--runs", "5"),
    ("experts",),
    ("experts", "--curves"),
    ("decode", "--runs", "5", "--new-tokens", "24"),
    ("training_step", "--layers", "4"),
    ("logging", "--layers", "4", "--runs", "5"),
    ("data",),
)
GPU_RUNS: tuple[tuple[str, ...], ...] = (
    ("experts",),
    ("experts", "--curves"),
    ("decode",),
    # All layers with float32 experts and AdamW would need 80 GB.
    ("training_step", "--layers", "8"),
    ("average_precision",),
    ("analysis",),
    ("specialisation",),
)


def main() -> None:
    """Run all, say how long each took, and write the table."""
    for module, *options in GPU_RUNS if DEVICE == "cuda" else CPU_RUNS:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", f"benchmarks.{module}", *options], check=True)
        sys.stderr.write(f"{module}: {time.perf_counter() - start:.0f} s\n")
    table.main()


if __name__ == "__main__":
    main()
