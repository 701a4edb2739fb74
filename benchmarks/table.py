"""Writes the table of results in benchmarks/README.md: `python -m benchmarks.table`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.results import RESULTS

README = Path(__file__).with_name("README.md")
START, END = "<!-- table: python -m benchmarks.table -->", "<!-- end of the table -->"
HEADER = "| benchmark | baseline | ours | ratio (min to max) |\n|---|---:|---:|---:|\n"

Result = dict[str, Any]
Rows = Iterator[tuple[str, str, str, str]]


def _span(values: dict[str, float], unit: str = "", scale: float = 1.0) -> str:
    numbers = {name: f"{scale * value:.3g}" for name, value in values.items()}
    return "{median}{unit} ({min} to {max})".format(unit=unit, **numbers)


def _experts(result: Result) -> Rows:
    for case in result["cases"]:
        for name in result["implementations"]:
            ours = _span(case["seconds"][name], " ms", 1e3)
            what = f"experts, {name}: {case['name']} ({case['runs']} runs)"
            low_rank = case.get("rank") is not None
            dense = "frozen dense MLP, once" if low_rank else "dense MLP, as often as top-k"
            loop = "published loop of full copies" if low_rank else "published loop"
            for baseline, called in (("floor", dense), ("published", loop)):
                seconds = _span(case["seconds"][baseline], " ms", 1e3)
                yield what, f"{called}: {seconds}", ours, _span(case[f"{name}_to_{baseline}"])


def _decode(result: Result) -> Rows:
    for name, slower in result["times_slower"].items():
        how = "CUDA graph" if result.get("graph") else "generate"
        what = f"{how}, batch 1, {name} ({result['runs']} runs)"
        what += f"; reads {result['parameters_read_to_dense']} x the parameters"
        speeds = result["tokens_per_second"]
        yield what, f"dense: {_span(speeds['dense'], ' tokens/s')}", _span(speeds[name], " tokens/s"), _span(slower)


def _training_step(result: Result) -> Rows:
    layers = "all" if result.get("layers") is None else result["layers"]
    name = "training step" + (", the paper's experts" if isinstance(result["experts"], list) else "")
    for stage in result["stages"]:
        what = f"{name}, stage {stage['stage']}, {layers} layers ({result['runs']} runs)"
        seconds = _span(stage["step_seconds"], " s")
        # Where the profile was not right the share was taken out.
        shared = ("in model math", f"{stage['math_share']:.1%}") if "math_share" in stage else ("", "")
        yield f"{what}: time", f"a step: {seconds}", *shared
        estimated, peak = (f"{stage[name] / 1e9:.3g} GB" for name in ("estimated_bytes", "peak_bytes"))
        # Without LLaMA-Factory there is no estimate.
        ratio = f"{stage['peak_to_estimate']:.3f}" if stage["peak_to_estimate"] else ""
        yield f"{what}: memory", f"estimate: {estimated}", f"peak: {peak}", ratio


def _average_precision(result: Result) -> Rows:
    for row in result["results"]:
        what = f"average precision, values: {row['values']}, {row['implementation']} ({result['runs']} runs)"
        baseline = f"scikit-learn: {row['scikit_learn_seconds']:.3g} s"
        yield what, baseline, _span(row["seconds"], " s"), f"1 : {row['ratio_to_median']:.3g}"


def _analysis(result: Result) -> Rows:
    what = f"analysis, {result['shape']}, {result['sentences']} sentences ({result['runs']} runs)"
    ours = f"recorded: {_span(result['recorded_s'], ' s')}, scoring {result['scoring_s']['median']:.2g} s"
    yield what, f"forward pass: {_span(result['forward_s'], ' s')}", ours, _span(result["recorded_to_forward"])


def _specialisation(result: Result) -> Rows:
    forward = f"forward pass: {_span(result['parts']['forward']['seconds'], ' s')}"
    for name, part in result["parts"].items():
        if name.endswith("recorded"):
            what = f"specialisation, {result['shape']}, {name} ({result['runs']} runs)"
            yield what, forward, _span(part["seconds"], " s"), _span(part["seconds_ratio"])


def _logging(result: Result) -> Rows:
    seconds = [result[name] for name in ("step_without_seconds", "step_with_seconds")]
    without, logged = (_span(one, " s") for one in seconds)
    more = {name: 1 + value for name, value in result["difference_of_neighbouring_steps"].items()}
    what = f"training step with the mixture's logs, {result['layers']} layers ({result['runs']} runs)"
    yield what, f"without: {without}", logged, _span(more)


def _data(result: Result) -> Rows:
    for case in result["cases"]:
        workers = f"{case['workers']} worker{'s' if case['workers'] > 1 else ''}"
        what = f"data, {case['name']}: {case['megabytes']:.3g} MB, {workers} ({case['runs']} runs)"
        ours = _span(case["megabytes_per_second_and_core"], " MB/s per core")
        for name, baseline in case["baselines"].items():
            theirs = _span(baseline["megabytes_per_second_and_core"], " MB/s per core")
            yield what, f"{name}: {theirs}", ours, f"speed: {_span(baseline['their_seconds_to_ours'])}"
    for name in dict.fromkeys(peak["name"] for peak in result["memory"]):
        small, large = (peak for peak in result["memory"] if peak["name"] == name)
        growth = large["peak_gigabytes"] / small["peak_gigabytes"]
        what = f"data, memory of all processes, {small['workers']} workers: {name}"
        peaks = (f"of {peak['megabytes']} MB: {peak['peak_gigabytes']:.3g} GB" for peak in (small, large))
        yield what, *peaks, f"{growth:.3g}"


def _containers(result: Result) -> Rows:
    """Beside the adapter in PEFT, which is the first."""
    adapter, *others = result["containers"].items()
    experts = "one count" if len(set(result["experts"]) - {1}) == 1 else "uneven counts"
    for name, row in others:
        for what, said in (("read", f"reading {result['prompt_tokens']} tokens"), ("written", "writing, batch 1")):
            speeds = [each[f"{what}_tokens_per_second"] for each in (adapter[1], row)]
            theirs, own = (_span(speed, " tokens/s") for speed in speeds)
            ratio = speeds[1]["median"] / speeds[0]["median"]
            where = f"containers, {experts}, {name}: {said} ({result['runs']} runs)"
            yield where, f"{adapter[0]}: {theirs}", own, f"speed: {ratio:.3g}"


def _import_time(result: Result) -> Rows:
    torch, autoload = (_span(result[name], " ms") for name in ("import_torch_ms", "autoload_ms"))
    yield f"autoload ({result['runs']} runs)", f"`import torch`: {torch}", autoload, f"{result['ratio_of_medians']:.2%}"


READERS: dict[str, Callable[[Result], Rows]] = {
    "experts": _experts,
    "decode": _decode,
    "training_step": _training_step,
    "whole_step": _training_step,
    "average_precision": _average_precision,
    "analysis": _analysis,
    "specialisation": _specialisation,
    "logging": _logging,
    "data": _data,
    "containers": _containers,
    "import_time": _import_time,
}


def make_tables() -> str:
    """A table for each machine that there are results of."""
    tables: dict[str, str] = {}
    for subject, read in READERS.items():
        for path in sorted(RESULTS.glob(f"{subject}*.json")):
            result = json.loads(path.read_text(encoding="utf-8"))
            if "curves" in result:
                continue
            rows = "".join(f"| {' | '.join(row)} |\n" for row in read(result))
            machine = _describe(result)
            tables[machine] = tables.get(machine, HEADER) + rows
    return "\n".join(f"{machine}:\n\n{table}" for machine, table in tables.items())


def _describe(result: Result) -> str:
    machine, versions = result["machine"], result["versions"]
    where = f"{machine['processor']}, {machine['cores']} cores" + (f", {machine['gpu']}" if machine["gpu"] else "")
    return f"{where}; Python {versions['python']}, torch {versions['torch']}, transformers {versions['transformers']}"


def main() -> None:
    """Replace what is between the two marks in the README."""
    text = README.read_text(encoding="utf-8")
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        sys.exit(f"{README} has no {START} and {END}: put them where the table belongs")
    README.write_text(f"{before}{START}\n\n{make_tables()}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
