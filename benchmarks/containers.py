"""A trained mixture in all that can run it: `python -m benchmarks.containers ADAPTER --texts FILE`.

The adapter in PEFT, each export that is exact, in transformers, llama.cpp and, with `--vllm PYTHON`, vLLM, and the
dense base: how far likelihoods and logits are from the adapter's, what each takes on the disk, and tokens per second of
reading a text and of greedy ones after it, in float32. One is loaded at a time: all of SmolLM2-135M are 15 GB.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import AutoTokenizer

from benchmarks.engines import CLOCKS, Engine, LlamaCpp, Transformers, VllmElsewhere
from benchmarks.results import RESULTS, environment, spread, write_result
from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.export.export import export
from neuronmoe_plugins.export.mixture import Mixture
from neuronmoe_plugins.export.request import ExportRequest
from neuronmoe_plugins.neurons.loading import load_model

ADAPTER, DENSE = "adapter in PEFT", "dense base in transformers"
# Name of a row -> what `neuronmoe export` is asked for.
EXPORTS: dict[str, dict[str, str]] = {
    "plain": {"container": "auto"},
    "neuronmoe": {"container": "neuronmoe"},
    "gguf": {"container": "gguf"},
    "gguf q8_0": {"container": "gguf", "dtype": "q8_0"},
}


def read_tokens(texts: Path, tokenizer: Any, count: int) -> list[int]:
    """The first tokens of the texts, one after the other."""
    tokens: list[int] = []
    with texts.open(encoding="utf-8") as lines:  # splitlines would cut within a text, at U+2028
        for line in lines:
            tokens += tokenizer(json.loads(line)["text"], add_special_tokens=False)["input_ids"]
            if len(tokens) >= count:
                return tokens[:count]
    raise SystemExit(f"{texts} has {len(tokens)} tokens, and {count} are needed: name a longer file")


def load_all(arguments: argparse.Namespace, folder: Path) -> Iterator[tuple[str, Engine, dict[str, int]]]:
    """Name, engine and sizes of each that can run it, loaded when it is asked for."""
    mixture = Mixture(arguments.adapter, arguments.model, ("ADAPTER", "--model"))
    base, context = mixture.base.name, arguments.prompt_tokens + arguments.new_tokens + 1
    files = [Path(base, "model.safetensors"), Path(arguments.adapter, "adapter_model.safetensors")]
    yield _in_transformers(ADAPTER, base, files, arguments.adapter)
    yield _in_transformers(DENSE, base, files[:1])
    for name in arguments.exports:
        asked = {"dtype": "float32"} | EXPORTS[name]
        output = folder / name.replace(" ", "_")
        try:
            exported = export(ExportRequest(arguments.adapter, output, model=base, **asked))
        except UserError as error:
            Console(stderr=True).print(f"{name} is left out: {error}", markup=False)
            continue
        files, label = sorted(output.glob("model*")), exported.model_type
        sizes = _sizes(int(exported.parameters.split()[0].replace(",", "")), files)
        if asked["container"] == "gguf":
            yield f"{label}, {asked['dtype']}", LlamaCpp(files[0], context, arguments.threads), sizes
            continue
        yield _in_transformers(f"{label} in transformers", str(output), files)
        if arguments.vllm:
            yield f"{label} in vLLM", VllmElsewhere(arguments.vllm, output, context), sizes


def _in_transformers(
    name: str, model: str, files: list[Path], adapter: str | None = None
) -> tuple[str, Engine, dict[str, int]]:
    engine = Transformers(load_model(model, "float32", "cpu", adapter))
    return name, engine, _sizes(sum(parameter.numel() for parameter in engine.model.parameters()), files)


def _sizes(parameters: int, files: list[Path]) -> dict[str, int]:
    return {"parameters": parameters, "bytes": sum(file.stat().st_size for file in files)}


def measure(
    loaded: Iterator[tuple[str, Engine, dict[str, int]]], tokens: list[int], arguments: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    """Sizes, exactness and speeds by name; the first is what the others are compared with."""
    compared = tokens[: arguments.compared_tokens]
    found: dict[str, dict[str, Any]] = {}
    for name, engine, sizes in track(loaded, "Measuring"):
        likelihoods = engine.likelihoods(compared)
        logits = engine.logits(compared) if isinstance(engine, Transformers) else None
        if not found:
            expected, expected_logits = likelihoods, logits
        found[name] = sizes | {
            "largest_difference_of_a_likelihood": max(abs(a - b) for a, b in zip(likelihoods, expected, strict=True)),
            "likelihood_of_text": sum(likelihoods),
        }
        if logits is not None:
            found[name]["largest_difference_of_a_logit"] = (logits - expected_logits).abs().max().item()
        # The first warms up.
        speeds = [engine.speeds(tokens, arguments.new_tokens, arguments.clock) for _ in range(arguments.runs + 1)][1:]
        engine.close()
        del engine
        read, written = zip(*speeds, strict=True)
        found[name] |= {"read_tokens_per_second": spread(read), "written_tokens_per_second": spread(written)}
    return found


def as_table(rows: dict[str, dict[str, Any]]) -> Table:
    """A row for each, as the documentation has them."""
    header = ("", "parameters", "MB", "of a likelihood", "of a logit", "read, tokens/s", "written, tokens/s")
    table = Table(*header, title="differences from the adapter, and speeds, batch 1")
    for name, row in rows.items():
        logit = row.get("largest_difference_of_a_logit")
        table.add_row(
            name,
            f"{row['parameters']:,}",
            f"{row['bytes'] / 1e6:.0f}",
            f"{row['largest_difference_of_a_likelihood']:.1e}",
            "" if logit is None else f"{logit:.1e}",
            *(
                "{median:.3g} ({min:.3g} to {max:.3g})".format(**row[f"{what}_tokens_per_second"])
                for what in ("read", "written")
            ),
        )
    return table


def main() -> None:
    """Measure, write the JSON and show it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("adapter", help="folder of a trained adapter")
    parser.add_argument("--model", help="folder of its base; default: the one that the adapter names")
    parser.add_argument("--texts", type=Path, required=True, help="JSON lines with a field `text`")
    parser.add_argument("--exports", nargs="*", choices=EXPORTS, default=list(EXPORTS))
    parser.add_argument("--vllm", type=Path, help="Python of an environment that has vLLM")
    parser.add_argument("--compared-tokens", type=int, default=48)
    parser.add_argument("--prompt-tokens", type=int, default=256)
    parser.add_argument("--new-tokens", type=int, default=24)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu, with one thread, for a busy machine")
    parser.add_argument("--output", type=Path, default=RESULTS / "containers.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = AutoTokenizer.from_pretrained(arguments.adapter)
        tokens = read_tokens(arguments.texts, tokenizer, arguments.prompt_tokens)
        rows = measure(load_all(arguments, Path(folder)), tokens, arguments)
    settings = {
        name: getattr(arguments, name)
        for name in ("compared_tokens", "prompt_tokens", "new_tokens", "runs", "threads", "clock")
    }
    mixture = Mixture(arguments.adapter, arguments.model, ("ADAPTER", "--model"))
    result = {
        **environment(),
        **settings,
        "dtype": "float32",
        "experts": list(mixture.counts.values()),
        "expert_rank": mixture.config.expert_rank,
        "containers": rows,
    }
    write_result(result, arguments.output)
    Console().print(as_table(rows))


if __name__ == "__main__":
    main()
