"""Tokens per second of `generate` with a mixture and without it: `python -m benchmarks.decode`.

A random model of SmolLM2-135M's shape, or of Llama-3.2-3B's on a GPU, generates greedily for one prompt, in turns as
the dense base model and with a mixture in every layer, which at top-2 reads twice the weights of the MLPs. `--graph`
decodes over a static cache instead, with the step of a token captured as one CUDA graph, so that only the device's time
is left; on a CPU, which has no graphs, the step is called as it is.
"""

from __future__ import annotations

import argparse
import inspect
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import StaticCache

from benchmarks.models import DEVICE, SHAPE, SHAPES, make_model, synchronize
from benchmarks.results import environment, result_path, spread, write_result
from neuronmoe_plugins.tuner import MoeConfig

PROMPT_TOKENS = 16
GRAPH_WARM_UP = 3


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


@torch.no_grad()
def capture_step(model: PeftModel, most_tokens: int, dense: bool) -> Callable[[], None]:
    """What decodes one token after those before, over a static cache for so many; on a GPU a graph's replay."""
    cache = StaticCache(config=model.config, max_cache_len=PROMPT_TOKENS + most_tokens)
    prompt = torch.arange(3, 3 + PROMPT_TOKENS, device=DEVICE).unsqueeze(0)
    token, position = prompt[:, :1].clone(), torch.full((1, 1), PROMPT_TOKENS, device=DEVICE)
    # transformers 5.0 and before do not count what is in the cache by themselves.
    is_told = "cache_position" in inspect.signature(model.get_base_model().forward).parameters

    def run(ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        options = {"cache_position": positions[0]} if is_told else {}
        with model.disable_adapter() if dense else nullcontext():
            outputs = model(input_ids=ids, position_ids=positions, past_key_values=cache, **options)
        last: torch.Tensor = outputs.logits[:, -1:].argmax(-1)
        return last

    def step() -> None:
        token.copy_(run(token, position))
        position.add_(1)

    token.copy_(run(prompt, torch.arange(PROMPT_TOKENS, device=DEVICE).unsqueeze(0)))
    if DEVICE != "cuda":
        return torch.no_grad()(step)
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(GRAPH_WARM_UP):
            step()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def replay(step: Callable[[], None], new_tokens: int) -> float:
    """Tokens per second of a captured step."""
    synchronize()
    start = time.perf_counter()
    for _ in range(new_tokens):
        step()
    synchronize()
    return new_tokens / (time.perf_counter() - start)


def measure(model: PeftModel, arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Tokens per second of the base and of each implementation, in turns."""
    names, new_tokens = ["dense", *arguments.implementations], arguments.new_tokens
    speeds: dict[str, list[float]] = {name: [] for name in names}
    steps: dict[str, Callable[[], None]] = {}
    for run in track(range(arguments.runs + 1), "Generating"):
        for name in names:
            if name != "dense":
                model.base_model.set_experts_implementation(name)  # type: ignore[operator, union-attr]
            if arguments.graph and name not in steps:
                most_tokens = (arguments.runs + 1) * new_tokens + GRAPH_WARM_UP
                steps[name] = capture_step(model, most_tokens, name == "dense")
            dense = name == "dense"
            speed = replay(steps[name], new_tokens) if arguments.graph else generate(model, new_tokens, dense)
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
    table = Table("", "tokens per second (min to max)", "times slower (min to max)", title="decoding, batch 1")
    for name, speeds in result["tokens_per_second"].items():
        slower = result["times_slower"].get(name)
        text = "{median:.4g} ({min:.4g} to {max:.4g})"
        table.add_row(name, text.format(**speeds), text.format(**slower) if slower else "")
    return table


def main() -> None:
    """Measure, write the JSON and show it."""
    parser = argparse.ArgumentParser(description=__doc__)
    own = ("grouped_mm", "sorted") if DEVICE == "cuda" else ("sorted", "loop")
    parser.add_argument("--implementations", nargs="+", help="of ours; default: those that can do it")
    parser.add_argument("--graph", action="store_true", help="replay a CUDA graph instead of calling `generate`")
    parser.add_argument("--shape", choices=SHAPES, default=SHAPE)
    parser.add_argument("--experts", type=int, default=3, help="experts in each layer, the base MLP included")
    parser.add_argument("--topk", type=int, default=2)
    parser.add_argument("--dtype", default="bfloat16" if DEVICE == "cuda" else "float32")
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--output", type=Path, help="default: results/decode.json, _cuda.json with a GPU")
    arguments = parser.parse_args()
    # The others wait for the device to tell them how many tokens each expert has, which no graph can.
    arguments.implementations = arguments.implementations or (own[:1] if arguments.graph else own)
    torch.set_num_threads(arguments.threads)
    base = make_model(arguments.shape, arguments.dtype, DEVICE)
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
    write_result(result, arguments.output or result_path("decode_graph" if arguments.graph else "decode"))
    Console().print(as_table(result))


if __name__ == "__main__":
    main()
