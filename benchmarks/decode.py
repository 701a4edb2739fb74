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


class Decoder:
    """Decodes after the prompt, one token a step, over a static cache; on a GPU a step is a graph's replay.

    All that the graph reads and writes is kept here: a graph holds addresses, and would go on with what is freed.

    Args:
        model: The model.
        new_tokens: How many tokens fit.
        dense: Whether the base model decodes, without its mixtures.
    """

    def __init__(self, model: PeftModel, new_tokens: int, dense: bool) -> None:
        self._model, self._dense = model, dense
        room = PROMPT_TOKENS + max(new_tokens, GRAPH_WARM_UP)
        self._cache = StaticCache(config=model.config, max_cache_len=room)
        self._prompt = torch.arange(3, 3 + PROMPT_TOKENS, device=DEVICE).unsqueeze(0)
        self._token, self._position = self._prompt[:, :1].clone(), self._prompt[:, :1].clone()
        # transformers 5.0 and before do not count what is in the cache by themselves.
        self._is_told = "cache_position" in inspect.signature(model.get_base_model().forward).parameters
        self._graph = self._capture() if DEVICE == "cuda" else None

    @torch.no_grad()
    def decode(self, new_tokens: int) -> tuple[float, list[int]]:
        """Tokens per second, and the tokens; each call begins anew after the prompt."""
        self._rewind()
        synchronize()
        start, tokens = time.perf_counter(), []
        for _ in range(new_tokens):
            tokens.append(self._token.clone())
            self._step() if self._graph is None else self._graph.replay()
        synchronize()
        seconds = time.perf_counter() - start
        return new_tokens / seconds, torch.cat(tokens, dim=1)[0].tolist()

    def _rewind(self) -> None:
        """Empty the cache, which counts in place what is in it, and read the prompt again."""
        self._cache.reset()
        self._token.copy_(self._run(self._prompt, torch.arange(PROMPT_TOKENS, device=DEVICE).unsqueeze(0)))
        self._position.fill_(PROMPT_TOKENS)

    def _step(self) -> None:
        self._token.copy_(self._run(self._token, self._position))
        self._position.add_(1)

    def _run(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        options = {"cache_position": positions[0]} if self._is_told else {}
        with self._model.disable_adapter() if self._dense else nullcontext():
            outputs = self._model(input_ids=ids, position_ids=positions, past_key_values=self._cache, **options)
        last: torch.Tensor = outputs.logits[:, -1:].argmax(-1)
        return last

    @torch.no_grad()
    def _capture(self) -> torch.cuda.CUDAGraph:
        """The step of a token as a graph, after some on a stream aside, as torch asks for."""
        self._rewind()
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(GRAPH_WARM_UP):
                self._step()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._step()
        return graph


def measure(model: PeftModel, arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Tokens per second of the base and of each implementation, in turns."""
    names, new_tokens = ["dense", *arguments.implementations], arguments.new_tokens
    speeds: dict[str, list[float]] = {name: [] for name in names}
    decoders: dict[str, Decoder] = {}
    for run in track(range(arguments.runs + 1), "Generating"):
        for name in names:
            if name != "dense":
                model.base_model.set_experts_implementation(name)  # type: ignore[operator, union-attr]
            dense = name == "dense"
            if arguments.graph:
                decoder = decoders[name] = decoders.get(name) or Decoder(model, new_tokens, dense)
                speed, _ = decoder.decode(new_tokens)
            else:
                speed = generate(model, new_tokens, dense)
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
