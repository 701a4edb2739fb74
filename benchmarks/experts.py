"""A mixture layer's forward and backward beside the least that it has to compute, and beside the published loop.

`python -m benchmarks.experts` times this package's implementations on the CPU's shapes, or, where there is a GPU, on
those of Llama-3.2-3B; `--curves` lets tokens, experts and hidden size grow, `--profile` tells what time ours takes in
which operation. Within a run, each implementation is timed
right after the other, so that whatever else slows the machine down hits all of them alike.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn
from torch.autograd import DeviceType

from benchmarks.mixtures import Case, PublishedLoop, make_layer
from benchmarks.models import DEVICE, make_profile, synchronize
from benchmarks.results import environment, result_path, spread, write_result
from neuronmoe_plugins.figures import MUTED, house_style, new_figure, save_png
from neuronmoe_plugins.files import write_json
from neuronmoe_plugins.tuner import MoeLayer

SMALL = Case("4096 tokens")
SMOLLM2 = SMALL.but("SmolLM2-135M", tokens=1024, hidden=576, intermediate=1536, experts=3)
CPU_CASES = (
    SMALL,
    SMALL.but("64 tokens", tokens=64),
    SMALL.but("hidden 64", hidden=64, intermediate=256),
    SMALL.but("24 experts", experts=24),
    SMALL.but("64 tokens, 24 experts", tokens=64, experts=24),
    SMALL.but("bfloat16", dtype="bfloat16"),
    SMALL.but("stage 2", stage=2),
    SMOLLM2,
    SMOLLM2.but("SmolLM2-135M, stage 2", stage=2),
    *(SMOLLM2.but(f"SmolLM2-135M, rank {rank}", rank=rank) for rank in (16, 64)),
    # Llama-3.2-3B's shape.
    SMALL.but("3B, rank 64", tokens=512, hidden=3072, intermediate=8192, rank=64),
)
LLAMA = Case("", hidden=3072, intermediate=8192, dtype="bfloat16")
GPU_CASES = (
    *(
        LLAMA.but(
            f"{tokens / 1024:g}k tokens, {experts} experts, stage {stage}", tokens=tokens, experts=experts, stage=stage
        )
        for tokens, counts in ((512, (2, 6)), (2048, (2, 6)), (8192, (2, 6, 24)), (32768, (2, 6)))
        for experts in counts
        for stage in (1, 2)
    ),
    *(
        LLAMA.but(f"{tokens / 1024:g}k tokens, 6 experts, rank {rank}", tokens=tokens, rank=rank)
        for tokens in (8192, 32768)
        for rank in (16, 64)
    ),
)
CURVES = {
    "tokens": (32, 128, 512, 2048, 8192),
    "experts": (2, 4, 6, 12, 24, 48),
    "hidden": (512, 1024, 2048, 4096) if DEVICE == "cuda" else (32, 64, 128, 256),
}
SIZES = {"tokens": "tokens", "experts": "experts", "hidden": "hidden size"}
LEAST_RUNS = 5
COSTLIEST = 12

Seconds = dict[str, list[float]]


def forward_backward(module: nn.Module, states: torch.Tensor, gradient: torch.Tensor, passes: int = 1) -> float:
    """Seconds of so many forwards and backwards, none of which finds gradients of before."""
    seconds = 0.0
    for _ in range(passes):
        states.grad = None
        module.zero_grad(set_to_none=True)
        synchronize()
        start = time.perf_counter()
        module(states).backward(gradient)
        synchronize()
        seconds += time.perf_counter() - start
    return seconds


def time_case(case: Case, names: Iterable[str], least_seconds: float) -> Seconds:
    """Seconds of each run of the floor, the published loop, and ours under the given names, for so long at least."""
    layer = make_layer(case)
    functions = {
        "floor": _timed(case.make_floor(), case, passes=case.floor_passes),
        "published": _timed(PublishedLoop(case, layer), case),
    }
    for name in names:
        functions[name] = partial(_ours, layer, name, _timed(layer, case))
    seconds: Seconds = {name: [] for name in functions}
    for function in functions.values():
        function()
    started = time.perf_counter()
    while len(seconds["floor"]) < LEAST_RUNS or time.perf_counter() - started < least_seconds:
        for name, function in functions.items():
            seconds[name].append(function())
    return seconds


def profile_case(case: Case, names: Iterable[str]) -> dict[str, dict[str, float]]:
    """For each of ours, seconds of the operations that take most of one run."""
    layer = make_layer(case)
    run = _timed(layer, case)
    for name in names:
        _ours(layer, name, run)
    return {name: operations(partial(_ours, layer, name, run)) for name in names}


def operations(run: Callable[[], object]) -> dict[str, float]:
    """Seconds that each of the costliest operations takes by itself, on the GPU the time of its kernels."""
    with make_profile() as profiled:
        run()
    attribute = "self_device_time_total" if DEVICE == "cuda" else "self_cpu_time_total"
    # A GPU's kernels have rows of their own.
    events = [event for event in profiled.key_averages() if event.device_type == DeviceType.CPU]
    seconds = {event.key: float(f"{getattr(event, attribute) / 1e6:.4g}") for event in events}
    return dict(sorted(seconds.items(), key=lambda item: -item[1])[:COSTLIEST])


def _timed(module: nn.Module, case: Case, passes: int = 1) -> Callable[[], float]:
    states = case.make_input()
    return partial(forward_backward, module.to(states), states, torch.randn_like(states), passes)


def _ours(layer: MoeLayer, name: str, run: Callable[[], float]) -> float:
    layer.experts_implementation["default"] = name
    return run()


def summary(case: Case, seconds: Seconds, names: Iterable[str]) -> dict[str, Any]:
    """A case's result: seconds of all, and ours by those of the floor and of the loop, run by run."""
    result: dict[str, Any] = {**asdict(case), "runs": len(seconds["floor"])}
    result["seconds"] = {name: spread(values) for name, values in seconds.items()}
    pairs = [("published", "floor"), *((name, baseline) for name in names for baseline in ("floor", "published"))]
    for name, baseline in pairs:
        ratios = [one / other for one, other in zip(seconds[name], seconds[baseline], strict=True)]
        result[f"{name}_to_{baseline}"] = spread(ratios)
    return result


def curve_cases() -> dict[str, list[Case]]:
    """The first case, or on a GPU the largest layer's, with one size growing at a time."""
    curves, start = {}, LLAMA if DEVICE == "cuda" else SMALL
    for name, values in CURVES.items():
        changes = [{name: value} | ({"intermediate": 4 * value} if name == "hidden" else {}) for value in values]
        curves[name] = [start.but(f"{change[name]} {name}", **change) for change in changes]
    return curves


def draw_curves(curves: dict[str, list[dict[str, Any]]], names: Iterable[str], path: Path) -> None:
    """A panel per size that grows: how many times as long as the floor the published loop and ours take."""
    lines = {"published loop": "published_to_floor", **{name: f"{name}_to_floor" for name in names}}
    with house_style():
        figure = new_figure(4.4 * len(curves), 3.4)
        figure.suptitle("Forward and backward of a mixture layer, by the dense MLP run as often as a token has experts")
        for axes, (size, results) in zip(figure.subplots(1, len(curves)), curves.items(), strict=True):
            sizes = [result[size] for result in results]
            for label, key in lines.items():
                axes.plot(range(len(sizes)), [result[key]["median"] for result in results], label=label)
            axes.axhline(1, color=MUTED, linewidth=1)
            axes.set_xticks(range(len(sizes)), map(str, sizes))
            axes.set(xlabel=SIZES[size], ylabel="times as long", ylim=(0, None))
            axes.legend()
        save_png(figure, path)


def as_table(results: list[dict[str, Any]], names: Iterable[str]) -> Table:
    """Ours by the floor and by the loop: medians of the runs' ratios."""
    table = Table("", "floor, ms", "published loop", title="forward and backward of a mixture layer, by the floor")
    for name in names:
        table.add_column(name)
        table.add_column("by the loop")
    for result in results:
        cells = [
            result["name"],
            f"{1e3 * result['seconds']['floor']['median']:.4g}",
            "{median:.2f}".format(**result["published_to_floor"]),
        ]
        for name in names:
            ratios = result[f"{name}_to_floor"]
            cells.append("{median:.2f} ({min:.2f} to {max:.2f})".format(**ratios))
            cells.append("{median:.2f}".format(**result[f"{name}_to_published"]))
        table.add_row(*cells)
    return table


def main() -> None:
    """Measure, write the JSON and show it."""
    parser = argparse.ArgumentParser(description=__doc__)
    own = ("grouped_mm", "sorted") if DEVICE == "cuda" else ("sorted",)
    parser.add_argument("--implementations", nargs="+", default=own, help="of ours; default: %(default)s")
    parser.add_argument("--curves", action="store_true", help="let sizes grow, and draw the figure")
    parser.add_argument("--profile", action="store_true", help="also profile one run of each case")
    parser.add_argument("--cases", nargs="*", help="only those of these names")
    parser.add_argument("--seconds", type=float, default=2.5, help="how long to time a case, at least")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    names, output = arguments.implementations, arguments.output

    def measured(cases: Iterable[Case]) -> Iterator[dict[str, Any]]:
        for case in track(list(cases), "Timing"):
            measurement = summary(case, time_case(case, names, arguments.seconds), names)
            yield measurement | ({"operations": profile_case(case, names)} if arguments.profile else {})

    result = {**environment(), "threads": torch.get_num_threads(), "implementations": list(names)}
    if arguments.curves:
        curves = {size: list(measured(cases)) for size, cases in curve_cases().items()}
        path = output or result_path("experts_curves")
        write_result(result | {"curves": curves}, path)
        draw_curves(curves, names, path.with_suffix(".png"))
        return
    cases = GPU_CASES if DEVICE == "cuda" else CPU_CASES
    results = []
    for own in measured(case for case in cases if not arguments.cases or case.name in arguments.cases):
        results.append(own)
        # After each case, so that a run that is cut short leaves those that it had.
        write_json(output or result_path("experts"), result | {"cases": results})
    Console().print(as_table(results, names))


if __name__ == "__main__":
    main()
