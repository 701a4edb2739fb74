"""What measuring an extended model's experts costs: `python -m benchmarks.specialisation`.

A model of random weights with a mixture adapter runs over random sentences of two languages: plainly, then with what
`neuronmoe analyze` records of it, and as `neuronmoe specialise` measures it. A GPU gets the shape of Llama-3.2-3B,
with the paper's 49 experts and 2 x 500 sentences; a CPU (Linux) six layers of SmolLM2-135M's shape and 2 x 30.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import peft
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.analysis import make_sentences
from benchmarks.models import EXPERTS, SHAPE, make_model, synchronize
from benchmarks.results import RESULTS, environment, spread, write_result
from neuronmoe_plugins.corpora import parse_corpus_specs
from neuronmoe_plugins.neurons import pooling
from neuronmoe_plugins.neurons.activations import memory_limit, observe_sentences, open_store
from neuronmoe_plugins.neurons.arrays import MemoryStore, ModuleKey, Store
from neuronmoe_plugins.neurons.metrics import AVERAGE_PRECISION
from neuronmoe_plugins.neurons.places import find_mixtures, find_mlp_inputs, find_projections
from neuronmoe_plugins.neurons.pooling import recording
from neuronmoe_plugins.neurons.processes import Processes
from neuronmoe_plugins.neurons.scoring import make_scorer, score_modules
from neuronmoe_plugins.specialisation import SpecialiseOptions
from neuronmoe_plugins.specialisation.expert_scores import score_experts
from neuronmoe_plugins.specialisation.mixtures import observing, places

LANGUAGES = ["en", "el"]
Sizes = Mapping[ModuleKey, int]


class Meter:
    """Seconds and peak memory of parts of a run.

    Args:
        on_gpu: Whether memory is the device's; else the process's.

    Attributes:
        seconds: By part.
        gigabytes: By part, the most in use.
    """

    def __init__(self, on_gpu: bool) -> None:
        self._on_gpu = on_gpu
        self.seconds: dict[str, float] = {}
        self.gigabytes: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Measure what is done in the block, the device's work included."""
        gc.collect()
        self._reset_peak()
        start = time.perf_counter()
        yield
        synchronize()
        self.seconds[name] = time.perf_counter() - start
        self.gigabytes[name] = self._peak()

    def _reset_peak(self) -> None:
        if self._on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        else:  # sets what Linux calls the high-water mark to what is in use now
            Path("/proc/self/clear_refs").write_text("5")

    def _peak(self) -> float:
        if self._on_gpu:
            return torch.cuda.max_memory_allocated() / 1e9
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(status["VmHWM"].split()[0]) / 1e6


class Benchmark:
    """One extended model and its sentences.

    Args:
        arguments: The command line.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        experts = EXPERTS[arguments.shape]
        base = make_model(arguments.shape, arguments.dtype, arguments.device, num_hidden_layers=len(experts))
        config = peft.get_peft_config(
            {"peft_type": "MOE", "task_type": "CAUSAL_LM", "num_experts": experts, "topk": 2, "inference_mode": True}
        )
        self.model: Any = peft.get_peft_model(base, config).to(arguments.device).eval()
        count, tokens = arguments.sentences, arguments.tokens
        self.sentences = make_sentences(len(LANGUAGES) * count, tokens, base.config.vocab_size, LANGUAGES)
        self.batch_size, self.on_gpu = arguments.batch_size, arguments.device.startswith("cuda")
        self.mixtures = find_mixtures(self.model)
        self.projections, _ = find_projections(self.model)
        self.metric = AVERAGE_PRECISION
        # The sources and names are not read: the sentences and the model are there.
        corpora = parse_corpus_specs([f"{language}={language}.txt" for language in LANGUAGES])
        self.options = SpecialiseOptions("model", "adapter", Path("output"), corpora)

    def run(self) -> Meter:
        """The three ways, one after another."""
        meter = Meter(self.on_gpu)
        with meter.part("forward"):
            self.collect({}, MemoryStore(0))
        self.analyze(meter)
        self.specialise(meter)
        return meter

    def analyze(self, meter: Meter) -> None:
        """As `neuronmoe analyze --adapter` does."""
        observed = {
            **{key: (place, pooling.mean) for key, place in self.projections.items()},
            **{key: (place, pooling.sum_of_directions) for key, place in find_mlp_inputs(self.model).items()},
        }
        units = {key: place.units for key, place in self.projections.items()}
        with tempfile.TemporaryDirectory() as name:
            store = self.store(Path(name), {key: place.units for key, (place, _) in observed.items()})
            with meter.part("analyze: recorded"):
                self.collect(observed, store)
            with meter.part("analyze: scored"):
                score = make_scorer("ap", self.metric, self.sentences, self.model.device)
                score_modules(score, units, store, self.sentences, Path(name), Processes(), False)

    def specialise(self, meter: Meter) -> None:
        """As `neuronmoe specialise` does."""
        with tempfile.TemporaryDirectory() as name:
            store = self.store(Path(name), places(self.mixtures))
            with meter.part("specialise: recorded"):
                observe_sentences(
                    self.model, self.sentences.token_ids, observing(self.mixtures), store, self.batch_size
                )
            with meter.part("specialise: scored"):
                path = Path(name) / "specialisation.parquet"
                score_experts(self.options, self.mixtures, store, self.sentences, path, False)

    def store(self, folder: Path, units: Sizes) -> Store:
        """Where both commands keep activations on this device by default."""
        limit = memory_limit(None, self.model.device, Processes())
        return open_store(folder, units, len(self.sentences.token_ids), limit, Processes())

    def collect(self, observed: dict[Any, Any], store: Store) -> None:
        """One pass over all sentences."""
        observe_sentences(self.model, self.sentences.token_ids, recording(observed), store, self.batch_size)


def show(result: Mapping[str, Any]) -> None:
    """Print the parts side by side."""
    table = Table(title="Medians of the runs")
    for column in ("", "seconds", "to the forward pass", "peak memory (GB)", "to the forward pass"):
        table.add_column(column, justify="right" if column else "left")
    for name, part in result["parts"].items():
        numbers = (part[key]["median"] for key in ("seconds", "seconds_ratio", "gigabytes", "gigabytes_ratio"))
        table.add_row(name, *(f"{number:.3g}" for number in numbers))
    Console(file=sys.stderr).print(table)


def parts(runs: list[Meter]) -> dict[str, dict[str, Any]]:
    """Of every part of the runs the spread, and that of its ratio to the plain forward pass of the same run."""
    return {
        name: {
            "seconds": spread([run.seconds[name] for run in runs]),
            "seconds_ratio": spread([run.seconds[name] / run.seconds["forward"] for run in runs]),
            "gigabytes": spread([run.gigabytes[name] for run in runs]),
            "gigabytes_ratio": spread([run.gigabytes[name] / run.gigabytes["forward"] for run in runs]),
        }
        for name in runs[0].seconds
    }


def main() -> None:
    """Measure, write the JSON and show it."""
    parser = argparse.ArgumentParser(description=__doc__)
    on_gpu = torch.cuda.is_available()
    parser.add_argument("--shape", choices=EXPERTS, default=SHAPE)
    parser.add_argument("--sentences", type=int, default=500 if on_gpu else 20, help="per language")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=64 if on_gpu else 16)
    parser.add_argument("--dtype", default="bfloat16" if on_gpu else "float32")
    parser.add_argument("--device", default="cuda" if on_gpu else "cpu")
    parser.add_argument("--runs", type=int, default=5 if on_gpu else 3)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    benchmark = Benchmark(arguments)
    benchmark.run()  # warms up
    result = {
        **environment(),
        **{name: value for name, value in vars(arguments).items() if name != "output"},
        "threads": torch.get_num_threads(),
        "languages": len(LANGUAGES),
        "experts": EXPERTS[arguments.shape],
        "neurons_analyze": sum(place.units for place in benchmark.projections.values()),
        "neurons_specialise": sum(size for (_, name), size in places(benchmark.mixtures).items() if name != "routing"),
        "parts": parts([benchmark.run() for _ in range(arguments.runs)]),
    }
    name = f"specialisation_{arguments.shape}_{arguments.device.partition(':')[0]}.json"
    write_result(result, arguments.output or RESULTS / name)
    show(result)


if __name__ == "__main__":
    main()
