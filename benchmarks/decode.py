"""Tokens per second of `generate` with a mixture and without it: `python -m benchmarks.decode`.

A random model of SmolLM2-135M's shape, or of Llama-3.2-3B's on a GPU, generates greedily for one prompt, in turns as
the dense base model and with a mixture in every layer, which at top-2 reads twice the weights of the MLPs.
"""

from __future__ import annotations

import argparse
import os
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.models import DEVICE, SHAPE, make_model, synchronize
from benchmarks.results import environment, result_path, spread, write_result
from neuronmoe_plugins.tuner import MoeConfig

PROMPT_TOKENS = 16


def generate(model: PeftModel, new_tokens: int, dense: bool) -> float:
    """Tokens per second, of the base model if `dense`."""
    prompt = torch.arange(3, 3 + PROMPT_TOKENS, device=DEVICE).unsqueeze(0)
    with model.disable_adapter() if dense else nullcontext():
        start = time.perf_counter()
        model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            min_new_tokens=new_tokens,
            max_new_tokens=new_tokens,
        )
        synchronize()
    return new_tokens / (time.perf_counter() - start)


def measure(model: PeftModel, arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Tokens per second of the base and of each implementation, in turns."""
    names = ["dense", *arguments.implementations]
    speeds: dict[str, list[float]] = {name: [] for name in names}
    for run in track(range(arguments.runs + 1), "Generating"):
        for name in names:
            if name != "dense":
                model.base_model.set_experts_implementation(name)  # type: ignore[operator, union-attr]
            speed = generate(model, arguments.new_tokens, name == "dense")
            if run:
                speeds[name].append(speed)
    return speeds


def parameters_read(model: PeftModel, topk: int, experts: int) -> float:
    """Parameters that a token reads with the mixture, by those that it reads without."""
    base = sum(p.numel() for name, p in model.named_parameters() if ".moe_" not in name)
    mlps = sum(p.numel() for name, p in model.named_parameters() if ".mlp." in name and ".moe_" not in name)
    return 1 + mlps * (min(topk, experts) - 1) / base


def as_table(result: dict[str, Any]) -> Table:
    """Each implementation beside the base."""
    table = Table("", "tokens per second (min to max)", "times slower (min to max)", title="generate, batch 1")
    for name, speeds in result["tokens_per_second"].items():
        slower = result["times_slower"].get(name)
        text = "{median:.4g} ({min:.4g} to {max:.4g})"
        table.add_row(name, text.format(**speeds), text.format(**slower) if slower else "")
    return table


def main() -> None:
    """Measure, write the JSON and show it."""
    parser = argparse.ArgumentParser(description=__doc__)
    own = ("grouped_mm", "sorted") if DEVICE == "cuda" else ("sorted", "loop")
    parser.add_argument("--implementations", nargs="+", default=own)
    parser.add_argument("--experts", type=int, default=3, help="experts in each layer, the base MLP included")
    parser.add_argument("--topk", type=int, default=2)
    parser.add_argument("--dtype", default="bfloat16" if DEVICE == "cuda" else "float32")
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--output", type=Path, help="default: results/decode.json, _cuda.json with a GPU")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    base = make_model(SHAPE, arguments.dtype, DEVICE)
    config = MoeConfig(task_type="CAUSAL_LM", num_experts=arguments.experts, topk=arguments.topk, inference_mode=True)
    model = get_peft_model(base, config).eval()
    speeds = measure(model, arguments)
    slower = {
        name: [dense / own for dense, own in zip(speeds["dense"], values, strict=True)]
        for name, values in speeds.items()
        if name != "dense"
    }
    result = {
        **environment(),
        **{name: value for name, value in vars(arguments).items() if name != "output"},
        "tokens_per_second": {name: spread(values) for name, values in speeds.items()},
        "times_slower": {name: spread(values) for name, values in slower.items()},
        "parameters_read_to_dense": round(parameters_read(model, arguments.topk, arguments.experts), 3),
    }
    write_result(result, arguments.output or result_path("decode"))
    Console().print(as_table(result))


if __name__ == "__main__":
    main()
