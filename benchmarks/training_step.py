"""Where the time and the memory of a training step go: `python -m benchmarks.training_step`.

LLaMA-Factory trains both stages, each in a process of its own, on a random model with experts in every layer. Some
steps are timed, and as many profiled. Model math is the time in all operations of the forward, the backward and the
optimizer but those that move rows between tokens and experts, or might; what is left of a step is those, Python, the
data and the profiler itself. In one step more, all tensors that are alive are added up: weights, gradients, optimizer
states and activations, to be set against the estimate that is logged at the start.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.autograd import DeviceType
from transformers import TrainerCallback

from benchmarks.host_runs import save_model, save_texts, train
from benchmarks.live_memory import LiveMemory
from benchmarks.models import DEVICE, SHAPE, SHAPES, make_profile, synchronize
from benchmarks.results import environment, result_path, spread, write_result

WARM_UP = 2
# Operations that move rows, or find out where to; some of them are the base model's own.
BOOKKEEPING = (
    "sort", "bincount", "topk", "index", "_index_put", "gather", "scatter", "cat", "arange", "floor_divide", "cumsum",
)  # fmt: skip


class Steps(TrainerCallback):
    """Times some steps, profiles as many, and adds up what is alive in one.

    Args:
        runs: How many steps to time.
        tokens: Tokens of a step.

    Attributes:
        seconds: Of each step that was timed.
        shares: Of the profiled steps' time: `math` and `bookkeeping`.
        estimated_bytes: What was estimated at the start; 0 without LLaMA-Factory.
        peak_bytes: The most that was alive at once.
        all: How many steps it takes.
    """

    def __init__(self, runs: int, tokens: int) -> None:
        self.tokens = tokens
        self.first_profiled = WARM_UP + runs
        self.measured = self.first_profiled + runs
        self.all = self.measured + 1
        self.seconds: list[float] = []
        self.shares: dict[str, float] = {}
        self.estimated_bytes = self.peak_bytes = 0
        self._start = 0.0
        self._profile = make_profile()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Estimate as the package does when it logs, which it does for LLaMA-Factory only."""
        if find_spec("llamafactory") is None:
            return
        from neuronmoe_plugins.integrations.llamafactory.memory import OptimizerStates, Setup, estimate_memory

        model = kwargs["model"]
        setup = Setup(OptimizerStates(2), num_tokens=self.tokens, num_logits=model.config.vocab_size)
        self.estimated_bytes = estimate_memory(model, setup).peak or 0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A step ends where the next begins, so that the data and the logs belong to it."""
        now, step = _now(), state.global_step
        if WARM_UP < step <= self.first_profiled:
            self.seconds.append(now - self._start)
        if step == self.first_profiled:
            self._profile.start()
            now = self._profiled_from = _now()
        if step == self.measured:
            self._read_profile(now - self._profiled_from)
            self._watch_memory(kwargs["model"], kwargs["optimizer"])
        self._start = now

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Read the peak of the step that was watched."""
        if state.global_step <= self.measured:
            return
        if DEVICE == "cuda":
            self.peak_bytes = torch.cuda.max_memory_allocated()
        else:
            self._memory.__exit__(None, None, None)
            self.peak_bytes = self._memory.peak

    def summary(self, stage: int) -> dict[str, Any]:
        """What a stage's run took, for its JSON."""
        return {
            "stage": stage,
            "step_seconds": spread(self.seconds),
            **{f"{name}_share": round(share, 4) for name, share in self.shares.items()},
            "estimated_bytes": self.estimated_bytes,
            "peak_bytes": self.peak_bytes,
            "peak_to_estimate": round(self.peak_bytes / self.estimated_bytes, 4) if self.estimated_bytes else None,
        }

    def _watch_memory(self, model: torch.nn.Module, optimizer: Any) -> None:
        if DEVICE == "cuda":
            torch.cuda.reset_peak_memory_stats()
            return
        states = (value for state in optimizer.state.values() for value in state.values())
        self._memory = LiveMemory([*model.parameters(), *model.buffers(), *filter(torch.is_tensor, states)])
        self._memory.__enter__()

    def _read_profile(self, wall: float) -> None:
        self._profile.stop()
        self.shares = shares(self._profile.key_averages(), wall, DEVICE)


def shares(events: Iterable[Any], wall: float, device: str) -> dict[str, float]:
    """The shares of `wall` seconds that went into math and into bookkeeping on the device.

    Args:
        events: A profile's `key_averages()`. With CUDA the device's time is there twice, as that of the kernels and as
            that of the operations that launched them, and three times within a part that has a name, such as the
            optimizer's step.
        wall: Seconds of the profiled steps.
        device: `cpu` or `cuda`.

    Returns:
        `math` and `bookkeeping`.
    """
    on_gpu, all_seconds, moving = device == "cuda", 0.0, 0.0
    for event in events:
        seconds = (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e6
        is_operation = event.device_type == DeviceType.CPU and event.key.startswith("aten::")
        if is_operation and event.key.removeprefix("aten::").startswith(BOOKKEEPING):
            # Kernels are known by who launched them: their own names tell less.
            moving += seconds
        is_kernel = event.device_type != DeviceType.CPU and not event.is_user_annotation
        all_seconds += seconds * (is_kernel if on_gpu else is_operation)
    return {"math": (all_seconds - moving) / wall, "bookkeeping": moving / wall}


def _now() -> float:
    synchronize()
    return time.perf_counter()


def run_stage(stage: int, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train one stage in this process, and say what it took."""
    torch.set_num_threads(arguments.threads)
    steps = Steps(arguments.runs, arguments.tokens)
    options: dict[str, Any] = {
        "cutoff_len": arguments.tokens,
        "max_steps": steps.all,
        "logging_steps": 10,
        "learning_rate": 1e-4,
        "output_dir": str(folder / f"stage{stage}"),
    }
    if stage == 1:
        options |= {"moe_num_experts": arguments.experts, "aux_loss_coef": 0.01}
    else:
        adapter = str(folder / "stage1")
        options |= {"adapter_name_or_path": adapter, "train_only_router": True, "lpr_loss_coef": 0.1}
    train(folder, options, [steps])
    return steps.summary(stage)


def as_table(stages: list[dict[str, Any]], title: str) -> Table:
    """A row per stage."""
    table = Table("stage", "a step, s", "model math", "bookkeeping", "memory, GB", "estimated", "ratio", title=title)
    for stage in stages:
        seconds = "{median:.3g} ({min:.3g} to {max:.3g})".format(**stage["step_seconds"])
        parts = (f"{stage[name]:.1%}" for name in ("math_share", "bookkeeping_share"))
        sizes = (f"{stage[name] / 1e9:.2f}" for name in ("peak_bytes", "estimated_bytes"))
        table.add_row(str(stage["stage"]), seconds, *parts, *sizes, str(stage["peak_to_estimate"]))
    return table


def main() -> None:
    """Measure, write the JSON and show it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default=SHAPE)
    parser.add_argument("--layers", type=int, help="default: all 30 of SmolLM2-135M, 28 of Llama-3.2-3B on a GPU")
    parser.add_argument("--experts", type=int, default=3, help="experts in each layer, the base MLP included")
    parser.add_argument("--tokens", type=int, default=1024, help="tokens of a step")
    parser.add_argument("--runs", type=int, default=5, help="steps that are timed, and as many that are profiled")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--output", type=Path, help="default: results/training_step.json, _cuda.json with a GPU")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_model(folder / "model", arguments.layers, "bfloat16" if DEVICE == "cuda" else "float32", arguments.shape)
        save_texts(folder / "data", 4 * arguments.tokens * (arguments.runs + WARM_UP))
        stages = []
        for stage in (1, 2):
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as processes:
                stages.append(processes.submit(run_stage, stage, folder, arguments).result())
    settings = {name: value for name, value in vars(arguments).items() if name != "output"}
    result = {**environment("llamafactory"), **settings, "stages": stages}
    write_result(result, arguments.output or result_path("training_step"))
    title = f"{arguments.experts} experts in each layer, {arguments.tokens} tokens"
    Console().print(as_table(stages, title))


if __name__ == "__main__":
    main()
