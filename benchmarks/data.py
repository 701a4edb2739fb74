"""How fast `neuronmoe data` draws training data, and how much memory it takes: `python -m benchmarks.data`.

Made-up Greek text in JSON lines is drawn as it is, beside a plain Python loop that reads, parses and writes the same
lines, and with its tokens counted, beside `datasets`: `load_dataset("json")` and a `map` that tokenises. The tokenizer
is a byte-level BPE one of 32,000 tokens, trained on such text. `--full` takes larger corpora, two workers beside two
processes, and near-duplicates (minutes). Memory is that of all processes of the command together, at two sizes.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.raw_corpora import LONG, SHORT, Kind, Writer, train_tokenizer
from benchmarks.results import RESULTS, environment, spread, write_result
from neuronmoe_plugins.data.prepare import prepare_data

VOCABULARY = 32_000
TRAINING_DOCUMENTS = 1000
FILES = 4
SHARE = 0.1
SAMPLED_EVERY = 0.02
"""Seconds between two looks at the memory."""
PLAIN, WHOLE, MAP = "plain loop", "load_dataset and map", "map alone"
SIZES: dict[bool, dict[str, Any]] = {
    False: {"plain": 12, "tokens": 4, "memory": (20, 200), "workers": (1,)},
    True: {"plain": 60, "tokens": 16, "memory": (60, 600), "workers": (1, 2)},
}
"""Megabytes of the corpora, and numbers of workers, by `--full`."""


@dataclass(frozen=True)
class Corpus:
    """Files of documents of one kind.

    Attributes:
        kind: Of the documents.
        files: All of the same folder.
        megabytes: Of all files.
        documents: How many.
    """

    kind: Kind
    files: tuple[Path, ...]
    megabytes: float
    documents: int

    @classmethod
    def write(cls, folder: Path, kind: Kind, megabytes: float, seed: int) -> Corpus:
        """Write a new one."""
        files = Writer(seed).write(folder, kind, int(megabytes * 1e6), FILES)
        documents = sum(path.read_bytes().count(b"\n") for path in files)
        return cls(kind, tuple(files), sum(path.stat().st_size for path in files) / 1e6, documents)

    def spec(self, path: Path, amount: dict[str, Any], **top: Any) -> Path:
        """Write the spec that draws so much of it; JSON is YAML."""
        own = {"name": "el", "language": "el", "role": "target", "source": str(self.files[0].parent), **amount}
        path.write_text(json.dumps({"seed": 22, "datasets": [own], **top}), encoding="utf-8")
        return path


@dataclass(frozen=True)
class Case:
    """What is timed.

    Attributes:
        name: Of it.
        corpus: What is read.
        spec: Of ours.
        workers: Of ours, and processes of the baseline.
        baseline: Seconds of what it is compared with, by name.
    """

    name: str
    corpus: Corpus
    spec: Path
    workers: int
    baseline: Callable[[], dict[str, float]]

    def ours(self) -> float:
        """Seconds of all passes, from the spec to the manifest."""
        with empty_folder(self.spec.parent) as folder:
            start = time.perf_counter()
            prepare_data(self.spec, folder, self.workers, console=Console(file=io.StringIO()))
            return time.perf_counter() - start

    def measure(self, runs: int) -> dict[str, Any]:
        """Ours and the baseline in turns."""
        ours, theirs = [], []
        for _ in range(runs):
            theirs.append(self.baseline())
            ours.append(self.ours())
        size = self.corpus.megabytes
        return {
            "name": self.name,
            "documents": self.corpus.documents,
            "megabytes": round(size, 1),
            "workers": self.workers,
            "runs": runs,
            "seconds": spread(ours),
            "megabytes_per_second_and_core": spread([size / one / self.workers for one in ours]),
            "baselines": {
                name: {
                    "seconds": spread([one[name] for one in theirs]),
                    "megabytes_per_second_and_core": spread([size / one[name] / self.workers for one in theirs]),
                    "their_seconds_to_ours": spread([one[name] / own for one, own in zip(theirs, ours, strict=True)]),
                }
                for name in theirs[0]
            },
        }


@contextmanager
def empty_folder(parent: Path) -> Iterator[Path]:
    """A folder for one run, which is deleted after it; that takes none of its time."""
    path = Path(tempfile.mkdtemp(dir=parent))
    yield path
    shutil.rmtree(path)


def plain_loop(corpus: Corpus, share: float) -> dict[str, float]:
    """Read and parse every line, and write the text of a share of them."""
    generator = random.Random(22)
    with empty_folder(corpus.files[0].parents[1]) as folder:
        start = time.perf_counter()
        with (folder / "el.jsonl").open("w", encoding="utf-8") as output:
            for path in corpus.files:
                with path.open(encoding="utf-8") as lines:
                    for line in lines:
                        text = json.loads(line)["text"]
                        if generator.random() < share:
                            output.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
        return {PLAIN: time.perf_counter() - start}


def load_and_map(corpus: Corpus, tokenizer: Any, workers: int) -> dict[str, float]:
    """Tokenise with `datasets`, into a cache that holds nothing."""
    import datasets

    datasets.disable_progress_bars()

    def tokenise(batch: dict[str, list[str]]) -> Any:
        return tokenizer(batch["text"], add_special_tokens=False, return_attention_mask=False)

    with empty_folder(corpus.files[0].parents[1]) as cache:
        files, processes = list(map(str, corpus.files)), None if workers == 1 else workers
        start = time.perf_counter()
        loaded = datasets.load_dataset("json", data_files=files, split="train", cache_dir=str(cache))
        between = time.perf_counter()
        loaded.map(tokenise, batched=True, num_proc=processes, remove_columns=loaded.column_names)
        end = time.perf_counter()
    return {WHOLE: end - start, MAP: end - between}


def plain_cases(folder: Path, megabytes: float) -> Iterator[Case]:
    """Without tokens."""
    for number, kind in enumerate((LONG, SHORT)):
        corpus = Corpus.write(folder / f"plain{number}", kind, megabytes / (number + 1), number)
        for share, name in ((1.0, "all"), (SHARE, f"{SHARE:.0%}")):
            amount = {"documents": "all" if share == 1 else int(share * corpus.documents)}
            spec = corpus.spec(folder / f"plain{number}-{share}.yaml", amount)
            yield Case(f"{kind.name}, {name}", corpus, spec, 1, lambda c=corpus, s=share: plain_loop(c, s))


def token_cases(folder: Path, megabytes: float, workers: tuple[int, ...], full: bool) -> Iterator[Case]:
    """With tokens and, if `full`, with near-duplicates beside the same baseline, which looks for none."""
    corpus = Corpus.write(folder / "tokens", LONG, megabytes, 2)
    tokenizer = train_tokenizer(islice(Writer(3).texts(LONG), TRAINING_DOCUMENTS), VOCABULARY, folder / "tokenizer")
    top: dict[str, Any] = {"tokenizer": str(folder / "tokenizer")}
    # The cost of a process's first call, on both sides.
    warm_up = Corpus.write(folder / "warm_up", SHORT, 0.1, 4)
    Case("", warm_up, warm_up.spec(folder / "warm_up.yaml", {"tokens": "all"}, **top), 1, dict).ours()
    load_and_map(warm_up, tokenizer, 1)
    for count in workers:

        def baseline(count: int = count) -> dict[str, float]:
            return load_and_map(corpus, tokenizer, count)

        plain = corpus.spec(folder / "tokens.yaml", {"tokens": "all"}, **top)
        near = corpus.spec(folder / "near.yaml", {"tokens": "all"}, near_duplicates=0.8, **top)
        yield Case(f"{LONG.name}, tokens", corpus, plain, count, baseline)
        if full:
            yield Case(f"{LONG.name}, tokens and near-duplicates", corpus, near, count, baseline)


def peak_memory(spec: Path, workers: int) -> float:
    """Most gigabytes in use by the command and its workers; pages that they share count in each."""
    import psutil

    with empty_folder(spec.parent) as folder:
        command = ["data", str(spec), "--output", str(folder), "--workers", str(workers)]
        process = subprocess.Popen([sys.executable, "-m", "neuronmoe_plugins", *command], stdout=subprocess.DEVNULL)
        peak, first = 0, psutil.Process(process.pid)
        while process.poll() is None:
            used = 0
            for one in (first, *_children(first)):
                try:
                    used += one.memory_info().rss
                except psutil.NoSuchProcess:  # it ended in between
                    continue
            peak = max(peak, used)
            time.sleep(SAMPLED_EVERY)
        if process.returncode:
            sys.exit(f"neuronmoe data ended with {process.returncode}")
    return round(peak / 1e9, 3)


def _children(process: Any) -> list[Any]:
    import psutil

    try:
        return list(process.children(recursive=True))
    except psutil.NoSuchProcess:
        return []


def memory(folder: Path, sizes: tuple[float, ...], full: bool) -> list[dict[str, Any]]:
    """The peak for each size, of drawing all documents and, if `full`, of drawing tokens without near-duplicates."""
    top = {"tokenizer": str(folder / "tokenizer"), "near_duplicates": 0.8}
    results = []
    for size in sizes:
        corpus = Corpus.write(folder / f"memory{size}", LONG, size, 5)
        specs = {"all documents": corpus.spec(folder / "memory.yaml", {"documents": "all"})}
        if full:
            specs["2M tokens, near-duplicates"] = corpus.spec(folder / "memory_near.yaml", {"tokens": "2M"}, **top)
        for name, spec in specs.items():
            gigabytes = peak_memory(spec, workers=2)
            results.append({"name": name, "megabytes": size, "workers": 2, "peak_gigabytes": gigabytes})
        shutil.rmtree(corpus.files[0].parent)
    return results


def as_table(cases: list[dict[str, Any]]) -> Table:
    """Ours beside every baseline."""
    text = "{median:.3g} ({min:.3g} to {max:.3g})"
    table = Table("", "workers", "baseline", "MB/s per core", "ours", "ours by the baseline", title="neuronmoe data")
    for case in cases:
        for name, theirs in case["baselines"].items():
            speeds = (one["megabytes_per_second_and_core"] for one in (theirs, case))
            numbers = (text.format(**one) for one in (*speeds, theirs["their_seconds_to_ours"]))
            table.add_row(case["name"], str(case["workers"]), name, *numbers)
    return table


def main() -> None:
    """Measure, write the JSON and show it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="larger corpora, two workers, near-duplicates")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--output", type=Path, help="default: results/data.json, data_full.json with --full")
    arguments = parser.parse_args()
    sizes, load = SIZES[arguments.full], os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokens = token_cases(folder, sizes["tokens"], sizes["workers"], arguments.full)
        cases = [*plain_cases(folder, sizes["plain"]), *tokens]
        results = [case.measure(arguments.runs) for case in track(cases, "Timing")]
        peaks = memory(folder, sizes["memory"], arguments.full)
    result = {
        **environment("datasets", "tokenizers"),
        # Other work on the machine slows both sides, but not always evenly.
        "load_average_before": round(load, 2),
        "full": arguments.full,
        "vocabulary": VOCABULARY,
        "cases": results,
        "memory": peaks,
    }
    default = RESULTS / f"data{'_full' if arguments.full else ''}.json"
    write_result(result, arguments.output or default)
    console = Console()
    console.print(as_table(results))
    for peak in peaks:
        console.print("{name} of {megabytes} MB, {workers} workers: {peak_gigabytes} GB".format(**peak))


if __name__ == "__main__":
    main()
