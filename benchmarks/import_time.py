"""What the autoload adds to `import torch`: `python benchmarks/import_time.py`.

Each run is a fresh process that imports torch with the autoload switched off, and then calls it by hand between two
readings of the clock, so that the noise of importing torch itself does not hide milliseconds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

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
    environment = os.environ | {"NEURONMOE_AUTOLOAD": "0"}
    torch_ms, autoload_ms = [], []
    for _ in range(runs):
        result = subprocess.run(
            [sys.executable, "-c", PROBE], env=environment, capture_output=True, text=True, check=True
        )
        torch_run, autoload_run = map(float, result.stdout.split())
        torch_ms.append(torch_run)
        autoload_ms.append(autoload_run)
    return torch_ms, autoload_ms


def spread(values: list[float]) -> dict[str, float]:
    """Minimum, median and maximum, in milliseconds."""
    return {"min": round(min(values), 2), "median": round(statistics.median(values), 2), "max": round(max(values), 2)}


def main() -> None:
    """Measure, write the JSON and show it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("results") / "import_time.json")
    arguments = parser.parse_args()
    torch_ms, autoload_ms = measure(arguments.runs)
    result = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "versions": {name: version(name) for name in ("torch", "wrapt", "neuronmoe-plugins")},
        "runs": arguments.runs,
        "import_torch_ms": spread(torch_ms),
        "autoload_ms": spread(autoload_ms),
        "ratio_of_medians": round(statistics.median(autoload_ms) / statistics.median(torch_ms), 5),
    }
    arguments.output.parent.mkdir(exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    sys.stdout.write(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
