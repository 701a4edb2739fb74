"""What every benchmark's JSON says about the machine and its runs."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from neuronmoe_plugins import __version__
from neuronmoe_plugins.files import write_json

RESULTS = Path(__file__).with_name("results")
DISTRIBUTIONS = ("numpy", "torch", "transformers", "peft")


def environment(*more_distributions: str) -> dict[str, Any]:
    """The machine's processor, cores and GPU, and the versions that matter."""
    import torch

    return {
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "versions": {
            "python": platform.python_version(),
            # From the package: a checkout on the path is not installed.
            "neuronmoe-plugins": __version__,
            **{name: version(name) for name in (*DISTRIBUTIONS, *more_distributions)},
        },
    }


def _processor() -> str:
    """The processor's model, which only Linux gives by name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except FileNotFoundError:
        return platform.processor()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{platform.machine()}, {models[0]}" if models else platform.machine()


def spread(values: Sequence[float]) -> dict[str, float]:
    """Minimum, median and maximum, to four digits."""
    summaries = {"min": min(values), "median": statistics.median(values), "max": max(values)}
    return {name: float(f"{value:.4g}") for name, value in summaries.items()}


def result_path(name: str) -> Path:
    """Where a benchmark's result goes if nothing else is said: `results/NAME.json`, `NAME_cuda.json` with a GPU."""
    import torch

    return RESULTS / f"{name}{'_cuda' if torch.cuda.is_available() else ''}.json"


def write_result(result: dict[str, Any], path: Path) -> None:
    """Write a benchmark's result and show it."""
    write_json(path, result)
    sys.stdout.write(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
