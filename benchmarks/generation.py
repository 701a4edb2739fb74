"""Tokens and bytes per second of generated text: `python -m benchmarks.generation --model FOLDER[,ADAPTER] …`.

A token of a larger vocabulary takes as long as another, and says more. All models go on from the same beginnings of
texts, in turns, by samples from their whole distribution, since greedy text of small models repeats itself. Beside the
bytes of what they generate are those of the texts themselves: what as many tokens of real text would have.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.models import DEVICE, synchronize
from benchmarks.results import environment, result_path, spread, write_result

PROMPT_CHARACTERS = 100


def load(name: str, dtype: str) -> tuple[Any, Any]:
    """A model, with the adapter that may be named behind a comma, and its tokenizer."""
    folder, _, adapter = name.partition(",")
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), device_map=DEVICE)
    if adapter:
        model = PeftModel.from_pretrained(model, adapter)
    return model.eval(), AutoTokenizer.from_pretrained(folder)


def generate(model: Any, tokenizer: Any, prompt: str, new_tokens: int) -> tuple[float, int]:
    """Seconds that so many tokens take, and the bytes of their text."""
    given = tokenizer(prompt, return_tensors="pt", add_special_tokens=False).to(DEVICE)
    torch.manual_seed(0)
    start = time.perf_counter()
    tokens = model.generate(
        **given, do_sample=True, top_k=0, top_p=1.0, min_new_tokens=new_tokens, max_new_tokens=new_tokens
    )
    synchronize()
    seconds = time.perf_counter() - start
    text = tokenizer.decode(tokens[0, given["input_ids"].shape[1] :])
    return seconds, len(text.encode())


def bytes_per_token(tokenizer: Any, texts: list[str]) -> float:
    """Of the texts themselves."""
    tokens = sum(map(len, tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]))
    return sum(len(text.encode()) for text in texts) / tokens


def measure(names: list[str], texts: list[str], arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """For each model its tokens per second, and bytes per token of what it generates and of the texts."""
    models = {name: load(name, arguments.dtype) for name in names}
    speeds: dict[str, list[float]] = {name: [] for name in names}
    written = dict.fromkeys(names, 0)
    for run in track(range(arguments.runs + 1), "Generating"):
        for name, loaded in models.items():
            prompt = texts[run % len(texts)][:PROMPT_CHARACTERS]
            seconds, size = generate(*loaded, prompt, arguments.new_tokens)
            if run:  # the first warms up
                speeds[name].append(arguments.new_tokens / seconds)
                written[name] += size
    tokens = arguments.runs * arguments.new_tokens
    return {
        name: {
            "tokens_per_second": spread(speeds[name]),
            "bytes_per_token_generated": round(written[name] / tokens, 3),
            "bytes_per_token_of_texts": round(bytes_per_token(models[name][1], texts), 3),
        }
        for name in names
    }


def as_table(models: dict[str, dict[str, Any]]) -> Table:
    """A row for each model."""
    header = ("", "tokens per second (min to max)", "bytes per second generated", "as text")
    table = Table(*header, title="generated text, batch 1")
    for name, own in models.items():
        speed = own["tokens_per_second"]
        bytes_per_second = (speed["median"] * own[f"bytes_per_token_{of}"] for of in ("generated", "of_texts"))
        rate = "{median:.4g} ({min:.4g} to {max:.4g})".format(**speed)
        table.add_row(name, rate, *(f"{value:.4g}" for value in bytes_per_second))
    return table


def main() -> None:
    """Measure, write the JSON and show it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", action="append", required=True, help="FOLDER, or FOLDER,ADAPTER; again for more")
    parser.add_argument("--texts", type=Path, required=True, help="JSON lines with a field `text`")
    parser.add_argument("--dtype", default="bfloat16" if DEVICE == "cuda" else "float32")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--output", type=Path, help="default: results/generation.json, _cuda.json with a GPU")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with arguments.texts.open(encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in lines if line.strip()]
    models = measure(arguments.model, texts, arguments)
    settings = {name: getattr(arguments, name) for name in ("dtype", "new_tokens", "runs", "threads")}
    write_result({**environment(), **settings, "models": models}, arguments.output or result_path("generation"))
    Console().print(as_table(models))


if __name__ == "__main__":
    main()
