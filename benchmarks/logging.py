"""What the mixture's logs cost of a training step: `python -m benchmarks.logging`.

LLaMA-Factory trains a random model of SmolLM2-135M's shape, with experts in every layer, on tagged text, and logs at
every step. Every other step runs without this package's share of the logs, so that whatever else slows the machine
down hits both alike. Beside that, the clock is read before and after everything that the package does for them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import TrainerCallback

from benchmarks.host_runs import save_model, save_texts, train
from benchmarks.results import environment, result_path, spread, write_result
from neuronmoe_plugins.tuner.metrics import MetricSums, RoutingMetrics

WARM_UP = 2


class Switch(TrainerCallback):
    """Turns the mixture's logs on in every other step, and times the steps and what is done for the logs.

    Attributes:
        steps: Seconds of each step after the warm-up, by whether the logs were on.
        own: Seconds in this package's code for them, of the steps where they were on.
    """

    def __init__(self) -> None:
        self.on = False
        self.steps: dict[bool, list[float]] = {True: [], False: []}
        self.own: list[float] = []
        self._spent = 0.0
        self._start = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A step ends where the next begins: the host logs after its own events."""
        now = time.perf_counter()
        if state.global_step > WARM_UP:
            self.steps[self.on].append(now - self._start)
            if self.on:
                self.own.append(self._spent)
        self.on, self._spent = not self.on, 0.0
        self._start = time.perf_counter()

    def watch(self, owner: type, name: str, otherwise: Callable[[], object]) -> None:
        """Time a method, and while the logs are off do something else instead."""
        method = getattr(owner, name)

        def watched(*args: Any, **kwargs: Any) -> object:
            if not self.on:
                return otherwise()
            start = time.perf_counter()
            result = method(*args, **kwargs)
            self._spent += time.perf_counter() - start
            return result

        setattr(owner, name, watched)


def run(arguments: argparse.Namespace, folder: Path) -> Switch:
    """Train on what is in the folder."""
    from neuronmoe_plugins.integrations.llamafactory.run_log import RoutingLog

    switch = Switch()
    for name in ("add", "add_routing"):
        switch.watch(RoutingMetrics, name, lambda: None)
    switch.watch(RoutingLog, "log_step", MetricSums)
    switch.watch(MetricSums, "means", dict)
    options = {
        "moe_num_experts": arguments.experts,
        "aux_loss_coef": 0.01,
        "lpr_loss_coef": 0.1,
        "cutoff_len": arguments.tokens,
        "disable_gradient_checkpointing": True,
        "max_steps": WARM_UP + 2 * arguments.runs + 1,
        "logging_steps": 1,
    }
    train(folder, options, [switch])
    return switch


def as_table(result: dict[str, Any], title: str) -> Table:
    """Ours against the baseline."""
    table = Table("a step", "seconds (min to max)", "of a step without", title=title)
    rows = {"without": "step_without_seconds", "with": "step_with_seconds", "code for the logs alone": "own_seconds"}
    for name, key in rows.items():
        values = result[key]
        share = values["median"] / result["step_without_seconds"]["median"]
        table.add_row(name, "{median:.4g} ({min:.4g} to {max:.4g})".format(**values), f"{share:.2%}")
    return table


def main() -> None:
    """Measure, write the JSON and show it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--experts", type=int, default=3, help="experts in each layer, the base MLP included")
    parser.add_argument("--tokens", type=int, default=512, help="tokens of a step")
    parser.add_argument("--runs", type=int, default=10, help="steps with the logs, and as many without")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--output", type=Path, help="default: results/logging.json, _cuda.json with a GPU")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_model(folder / "model", arguments.layers)
        save_texts(folder / "data", 4 * arguments.tokens * (arguments.runs + WARM_UP))
        switch = run(arguments, folder)
    without, own = switch.steps[False], switch.own
    pairs = zip(switch.steps[True], without, strict=True)
    result = {
        **environment("llamafactory"),
        **{name: value for name, value in vars(arguments).items() if name != "output"},
        "step_with_seconds": spread(switch.steps[True]),
        "step_without_seconds": spread(without),
        "own_seconds": spread(own),
        "own_share_of_a_step": round(statistics.median(own) / statistics.median(without), 5),
        "difference_of_neighbouring_steps": spread([one / other - 1 for one, other in pairs]),
    }
    write_result(result, arguments.output or result_path("logging"))
    title = f"{arguments.layers} layers of {arguments.experts} experts, {arguments.tokens} tokens, a log at every step"
    Console().print(as_table(result, title))


if __name__ == "__main__":
    main()
