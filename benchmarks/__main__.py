"""The benchmarks that a CPU can run in ten minutes, and the table of their results: `python -m benchmarks`."""

from __future__ import annotations

import subprocess
import sys
import time

from benchmarks import table

# Each in a process of its own, which the others cannot slow down or fill up.
RUNS: tuple[tuple[str, ...], ...] = (
    ("import_time", "--runs", "7"),
    ("average_precision", "--runs", "5"),
    ("analysis",),
    ("specialisation", "--runs", "5"),
    ("experts",),
    ("experts", "--curves"),
    ("decode", "--runs", "5", "--new-tokens", "32"),
    ("training_step", "--layers", "4"),
    ("logging", "--layers", "4", "--runs", "5"),
)


def main() -> None:
    """Run all, say how long each took, and write the table."""
    for module, *options in RUNS:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", f"benchmarks.{module}", *options], check=True)
        sys.stderr.write(f"{module}: {time.perf_counter() - start:.0f} s\n")
    table.main()


if __name__ == "__main__":
    main()
