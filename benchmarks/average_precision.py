"""Average precision of a module's units against a loop over scikit-learn's: `python -m benchmarks.average_precision`.

Everything runs on one core; where there is a CUDA device, the torch implementation runs on it too. The scikit-learn
loop is timed on some of the units, and its time for all of them is reckoned from that; `--full` times it on all
(minutes).
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from sklearn.metrics import average_precision_score

from benchmarks.results import environment, result_path, spread, write_result
from neuronmoe_plugins.neurons.arrays import FloatArray, IntArray, ScoreArray
from neuronmoe_plugins.neurons.average_precision import average_precision, average_precision_torch

Generate = Callable[[np.random.Generator, tuple[int, int]], FloatArray]


def normal(generator: np.random.Generator, shape: tuple[int, int]) -> FloatArray:
    """Hardly any ties."""
    return generator.standard_normal(shape, dtype=np.float32)


def bfloat16(generator: np.random.Generator, shape: tuple[int, int]) -> FloatArray:
    """Normal values cut to bfloat16: half of them tied."""
    return (normal(generator, shape).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


def fifty_values(generator: np.random.Generator, shape: tuple[int, int]) -> FloatArray:
    """Nothing but ties."""
    return generator.integers(50, size=shape).astype(np.float32)


# Scores are compared with those of scikit-learn for this many units.
EXACT_UNITS = 50
VALUES: dict[str, Generate] = {"normal": normal, "bfloat16": bfloat16, "fifty values": fifty_values}


def scikit_learn(pooled: FloatArray, labels: IntArray, num_languages: int) -> ScoreArray:
    """The loop that everybody would write."""
    return np.array(
        [[average_precision_score(labels == language, unit) for unit in pooled.T] for language in range(num_languages)]
    )


class Numpy:
    """Ours on the one core.

    Args:
        pooled: float32 (samples, units).
        labels: int64 (samples,).
        num_languages: number of languages.
    """

    name = "numpy"

    def __init__(self, pooled: FloatArray, labels: IntArray, num_languages: int) -> None:
        self.arguments = pooled, labels, num_languages

    def score(self) -> ScoreArray:
        """Scores of all units."""
        return average_precision(*self.arguments)

    def extra_memory(self) -> int:
        """Most bytes in use beyond the activations, the scores included."""
        tracemalloc.start()
        self.score()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return peak


class Cuda(Numpy):
    """Ours on the GPU, where the activations are already; the scores are copied to the host."""

    name = "torch, CUDA"

    def __init__(self, pooled: FloatArray, labels: IntArray, num_languages: int) -> None:
        self.on_device = torch.from_numpy(pooled).cuda(), torch.from_numpy(labels).cuda(), num_languages

    def score(self) -> ScoreArray:
        scores: ScoreArray = average_precision_torch(*self.on_device).cpu().numpy()
        return scores

    def extra_memory(self) -> int:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        self.score()
        return torch.cuda.max_memory_allocated() - before


def seconds(action: Callable[[], object]) -> float:
    """Wall time of an action."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def measure(values: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per implementation for one kind of values."""
    generator = np.random.default_rng(arguments.seed)
    labels = generator.permutation(np.arange(arguments.samples) % arguments.languages)
    pooled = VALUES[values](generator, (arguments.samples, arguments.units))
    few = np.ascontiguousarray(pooled[:, : arguments.baseline_units])
    baseline = seconds(lambda: scikit_learn(few, labels, arguments.languages)) * arguments.units / few.shape[1]
    expected = scikit_learn(few[:, :EXACT_UNITS], labels, arguments.languages)
    rows = []
    for implementation in (Numpy, Cuda) if torch.cuda.is_available() else (Numpy,):
        ours = implementation(pooled, labels, arguments.languages)
        scores = ours.score()  # warms up
        runs = [seconds(ours.score) for _ in range(arguments.runs)]
        row = {
            "values": values,
            "implementation": ours.name,
            "seconds": spread(runs),
            "extra_memory_mb": round(ours.extra_memory() / 1e6, 1),
            "scikit_learn_seconds": float(f"{baseline:.4g}"),
            "ratio_to_median": round(baseline / statistics.median(runs), 1),
            "largest_difference": float(f"{np.abs(scores[:, :EXACT_UNITS] - expected).max():.2g}"),
        }
        rows.append(row)
    return rows


def as_table(rows: list[dict[str, Any]], title: str) -> Table:
    """The rows side by side."""
    table = Table("values", "ours", "seconds (min to max)", "scikit-learn", "ratio", "extra MB", title=title)
    for row in rows:
        ours = "{median:.3g} ({min:.3g} to {max:.3g})".format(**row["seconds"])
        others = [row[name] for name in ("scikit_learn_seconds", "ratio_to_median", "extra_memory_mb")]
        table.add_row(row["values"], row["implementation"], ours, *map(str, others))
    return table


def main() -> None:
    """Measure, write the JSON and show it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--units", type=int, default=20000)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--languages", type=int, default=6)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--baseline-units", type=int, default=200, help="units that the scikit-learn loop is timed on")
    parser.add_argument("--full", action="store_true", help="time the scikit-learn loop on all units")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="default: results/average_precision.json, _cuda.json with a GPU")
    arguments = parser.parse_args()
    if arguments.full or arguments.baseline_units > arguments.units:
        arguments.baseline_units = arguments.units
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    rows = [row for values in VALUES for row in measure(values, arguments)]
    settings = {name: value for name, value in vars(arguments).items() if name not in ("output", "full")}
    result = {**environment("scikit-learn"), **settings, "results": rows}
    write_result(result, arguments.output or result_path("average_precision"))
    size = f"{arguments.units} units, {arguments.samples} samples, {arguments.languages} languages"
    title = f"{size}; {arguments.runs} runs; scikit-learn timed on {arguments.baseline_units} units"
    Console().print(as_table(rows, title))


if __name__ == "__main__":
    main()
