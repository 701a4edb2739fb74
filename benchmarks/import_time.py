"""What the autoload adds to `import torch`: `python -m benchmarks.import_time`.

Each run is a fresh process that imports torch with the autoload switched off, and then calls it by hand between two
readings of the clock, so that the noise of importing torch itself does not hide milliseconds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

from benchmarks.results import RESULTS, environment, spread, write_result

PROBE = """
import os, time
start = time.perf_counter()
import torch
torch_ms = (time.perf_counter() - start) * 1e3
os.environ.pop("NEURONMOE_AUTOLOAD")
start = time.perf_counter()
import neuronmoe_autoload
neuronmoe_autoload.autoload()
print(torch_ms, (time.perf_counter() - start) * 1e3)
"""


def measure(runs: int) -> tuple[list[float], list[float]]:
    """Milliseconds of `import torch` and of the autoload, one of each per run."""
    variables = os.environ | {"NEURONMOE_AUTOLOAD": "0"}
    torch_ms, autoload_ms = [], []
    for _ in range(runs):
        result = subprocess.run(
            [sys.executable, "-c", PROBE], env=variables, capture_output=True, text=True, check=True
        )
        torch_run, autoload_run = map(float, result.stdout.split())
        torch_ms.append(torch_run)
        autoload_ms.append(autoload_run)
    return torch_ms, autoload_ms


def main() -> None:
    """Measure, write the JSON and show it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--output", type=Path, default=RESULTS / "import_time.json")
    arguments = parser.parse_args()
    torch_ms, autoload_ms = measure(arguments.runs)
    result = {
        **environment("wrapt"),
        "runs": arguments.runs,
        "import_torch_ms": spread(torch_ms),
        "autoload_ms": spread(autoload_ms),
        "ratio_of_medians": round(statistics.median(autoload_ms) / statistics.median(torch_ms), 5),
    }
    write_result(result, arguments.output)


if __name__ == "__main__":
    main()
