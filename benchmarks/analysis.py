"""What measuring neurons costs beside the model's own forward pass: `python -m benchmarks.analysis`.

A model of random weights runs over random sentences of six languages: once plainly, as the floor, then with everything
that `neuronmoe analyze` records, and the scoring after that. On a GPU: `--shape llama-3.2-3b --sentences 3000`.
"""

from __future__ import annotations

import argparse
import random
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.models import SHAPE, SHAPES, make_model, synchronize
from benchmarks.results import RESULTS, environment, spread, write_result
from neuronmoe_plugins.neurons import pooling
from neuronmoe_plugins.neurons.activations import observe_sentences
from neuronmoe_plugins.neurons.arrays import FileStore, MemoryStore, Store
from neuronmoe_plugins.neurons.metrics import AVERAGE_PRECISION
from neuronmoe_plugins.neurons.places import find_mlp_inputs, find_projections
from neuronmoe_plugins.neurons.pooling import recording
from neuronmoe_plugins.neurons.processes import Processes
from neuronmoe_plugins.neurons.scoring import make_scorer, score_modules
from neuronmoe_plugins.neurons.sentences import TokenizedSentences

LANGUAGES = ["en", "el", "tr", "hu", "es", "zh"]


def make_sentences(
    count: int, longest: int, vocab_size: int, languages: Sequence[str] = LANGUAGES
) -> TokenizedSentences:
    """Random tokens, 8 to `longest` a sentence, the languages in turn."""
    generator = random.Random(0)
    token_ids = [[generator.randrange(vocab_size) for _ in range(generator.randint(8, longest))] for _ in range(count)]
    membership = [[int(row % len(languages) == own) for row in range(count)] for own in range(len(languages))]
    return TokenizedSentences(languages, membership, [f"sentence {row}" for row in range(count)], token_ids, "right")


class Benchmark:
    """One model and its sentences.

    Args:
        arguments: The command line.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.model = make_model(arguments.shape, arguments.dtype, arguments.device)
        self.sentences = make_sentences(arguments.sentences, arguments.tokens, self.model.config.vocab_size)
        self.batch_size = arguments.batch_size
        self.on_gpu = arguments.device.startswith("cuda")
        projections, _ = find_projections(self.model)
        self.units = {key: place.units for key, place in projections.items()}
        self.places = {
            **{key: (place, pooling.mean) for key, place in projections.items()},
            **{key: (place, pooling.sum_of_directions) for key, place in find_mlp_inputs(self.model).items()},
        }
        self.metric = AVERAGE_PRECISION

    def run(self) -> dict[str, float]:
        """Seconds of the plain forward pass, of the recorded one, and of the scoring."""
        seconds = {}
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            store = self.make_store(folder)
            seconds["forward"] = self.time(lambda: self.collect({}, MemoryStore(0)))
            seconds["recorded"] = self.time(lambda: self.collect(self.places, store))
            score = make_scorer("ap", self.metric, self.sentences, self.model.device)
            seconds["scoring"] = self.time(
                lambda: score_modules(score, self.units, store, self.sentences, folder, Processes(), False)
            )
        return seconds

    def make_store(self, folder: Path) -> Store:
        """Where `neuronmoe analyze` keeps activations on this device by default."""
        if self.on_gpu:
            return MemoryStore(len(self.sentences.token_ids))
        units = {key: place.units for key, (place, _) in self.places.items()}
        return FileStore(folder, units, len(self.sentences.token_ids))

    def collect(self, places: dict[Any, Any], store: Store) -> None:
        """One pass over all sentences."""
        observe_sentences(self.model, self.sentences.token_ids, recording(places), store, self.batch_size)

    def time(self, action: Callable[[], object]) -> float:
        """Seconds of an action, the device's work included."""
        start = time.perf_counter()
        action()
        synchronize()
        return time.perf_counter() - start

    def peak_memory(self) -> float:
        """Most gigabytes in use, of the device or of the process."""
        if self.on_gpu:
            return torch.cuda.max_memory_allocated() / 1e9
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def main() -> None:
    """Measure, write the JSON and show it."""
    parser = argparse.ArgumentParser(description=__doc__)
    on_gpu = torch.cuda.is_available()
    parser.add_argument("--shape", choices=SHAPES, default=SHAPE)
    parser.add_argument("--sentences", type=int, default=3000 if on_gpu else 36)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=128 if on_gpu else 16)
    parser.add_argument("--dtype", default="bfloat16" if on_gpu else "float32")
    parser.add_argument("--device", default="cuda" if on_gpu else "cpu")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    benchmark = Benchmark(arguments)
    benchmark.run()  # warms up
    runs = [benchmark.run() for _ in range(arguments.runs)]
    totals = [run["recorded"] + run["scoring"] for run in runs]
    result = {
        **environment(),
        **{name: value for name, value in vars(arguments).items() if name != "output"},
        "languages": len(LANGUAGES),
        "neurons": sum(benchmark.units.values()),
        **{f"{name}_s": spread([run[name] for run in runs]) for name in runs[0]},
        "recorded_to_forward": spread([run["recorded"] / run["forward"] for run in runs]),
        "analysis_s": spread(totals),
        "peak_memory_gb": round(benchmark.peak_memory(), 2),
    }
    write_result(result, arguments.output or RESULTS / f"analysis_{arguments.shape}.json")


if __name__ == "__main__":
    main()
