"""What a study found: a row per run, stage and text in `results.parquet`, per document, and a table of the arms."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path

from filelock import FileLock
from safetensors import safe_open

from neuronmoe_plugins.comparison.lm_eval_results import metric_of
from neuronmoe_plugins.evaluation import task_name
from neuronmoe_plugins.files import replaced_file, write_text, writing
from neuronmoe_plugins.steps import minutes_of
from neuronmoe_plugins.study.claims import documents
from neuronmoe_plugins.study.display import Row, table
from neuronmoe_plugins.study.runs import BITS_PER_BYTE, Run, best_of, known_runs, trials_of
from neuronmoe_plugins.study.trainings import Training
from neuronmoe_plugins.tables import as_markdown

TRAINED = re.compile(r"trainable params: ([\d,]+)")
# Column -> type of pyarrow.
COLUMNS = {
    **dict.fromkeys(("arm", "method", "language", "strategy"), "string"),
    **dict.fromkeys(("new_experts", "rank"), "int64"),
    **{"learning_rate": "float64", "seed": "int64", "best_learning_rate": "bool", "stage": "string"},
    **{"measure": "string", "of": "string", "metric": "string", "value": "float64", "stderr": "float64"},
    **dict.fromkeys(("added_parameters", "trained_parameters", "file_bytes"), "int64"),
    **dict.fromkeys(("training_seconds", "evaluation_seconds"), "float64"),
}
# Of documents.parquet: by what a verdict is judged, for who has not the runs themselves.
DOCUMENT_COLUMNS = {
    **{name: COLUMNS[name] for name in ("arm", "language", "learning_rate", "seed", "stage", "measure")},
    **{"document": "int64", "log_likelihood": "float64", "bytes": "int64"},
}


def collect(trainings: Sequence[Training]) -> list[Row]:
    """A row for everything that was measured in runs that are done."""
    return [row for run in _done_runs(trainings) for row in _rows(run)]


def write_results(trainings: Sequence[Training], output: Path) -> list[Row]:
    """Write `results.parquet` and `results.md`, and give the rows; raises `UserError` if the disk is full."""
    # Of two calls at once the one that writes last has also looked last, and so misses nothing.
    with writing(f"--output {output}"), FileLock(output / ".results.lock"):
        rows = collect(trainings)
        _write_table(rows, COLUMNS, output / "results.parquet")
        write_text(output / "results.md", as_markdown(table(rows)) + "\n")
    return rows


def write_documents(trainings: Sequence[Training], output: Path) -> None:
    """Write `documents.parquet`: of each document of the held-out texts the log-likelihood, in nats, and the bytes.

    Raises:
        UserError: if samples are damaged, or the disk is full.
    """
    with writing(f"--output {output}"), FileLock(output / ".results.lock"):
        rows = [row for run in _done_runs(trainings) for row in _documents(run)]
        _write_table(rows, DOCUMENT_COLUMNS, output / "documents.parquet")


def _done_runs(trainings: Sequence[Training]) -> Iterator[Run]:
    return (run for training in trainings for run in known_runs(training) if run.is_done)


def _write_table(rows: Sequence[Row], columns: Mapping[str, str], file: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(name, getattr(pa, "bool_" if kind == "bool" else kind)()) for name, kind in columns.items()])
    with replaced_file(file) as opened:
        pq.write_table(pa.Table.from_pylist(rows, schema), opened)


def _documents(run: Run) -> Iterator[Row]:
    about: Row = {
        **{"arm": run.training.arm.name, "language": run.training.target.language},
        **{"learning_rate": run.rate, "seed": run.seed},
    }
    texts = list(run.training.spec.texts_of(run.training.target.language))
    for stage in run.stages:
        for text, values in zip(texts, documents([run], texts, stage), strict=True):
            for number, (log_likelihood, count) in enumerate(values[0].tolist()):
                found = {"document": number, "log_likelihood": log_likelihood, "bytes": int(count)}
                yield about | {"stage": stage, "measure": text} | found


def _rows(run: Run) -> Iterator[Row]:
    training = run.training
    allocation, target = training.allocation, training.target
    best = best_of(trials_of(training))
    about = {
        "arm": training.arm.name,
        "method": training.arm.method,
        "language": target.language,
        "strategy": None if allocation is None else allocation.strategy,
        "new_experts": None if allocation is None else allocation.new_experts,
        "rank": training.rank,
        "learning_rate": run.rate,
        "seed": run.seed,
        "best_learning_rate": None if best is None else best.rate == run.rate,
    }
    minutes = {step.name: minutes_of(step, run.stamps) for step in run.steps}
    new = [*map(task_name, target.texts), *target.tasks]
    for stage in run.stages:
        of_stage = about | {"stage": stage} | sizes_of(run, stage)
        of_stage["training_seconds"] = 60 * minutes[stage] if stage in minutes else None
        of_stage["evaluation_seconds"] = 60 * minutes[f"evaluate-{stage}"]
        tasks = run.results(stage).tasks
        for name in [
            *map(task_name, training.spec.texts_of(target.language)),
            *training.spec.tasks_of(target.language),
        ]:
            for key, score in tasks[name].scores.items():
                if name.startswith(task_name("")) and key != BITS_PER_BYTE:
                    continue
                yield of_stage | {
                    "measure": name.removeprefix(task_name("")),
                    "of": "new language" if name in new else "old language",
                    "metric": metric_of(key),
                    "value": score.value,
                    "stderr": score.stderr,
                }


def sizes_of(run: Run, stage: str) -> Row:
    """Parameters and bytes of what a stage saved, and what it trained; None of what only a file says that is gone."""
    if run.training.is_base:
        return {"added_parameters": 0, "trained_parameters": 0, "file_bytes": 0}
    files, log = list((run.folder / stage).glob("*.safetensors")), run.folder / f"{stage}.log"
    is_counted = run.training.saves_model or not files
    trained = TRAINED.search(log.read_text(encoding="utf-8", errors="replace") if log.exists() else "")
    return {
        "added_parameters": run.training.parameters if is_counted else sum(map(parameters_in, files)),
        "trained_parameters": None if trained is None else int(trained[1].replace(",", "")),
        "file_bytes": sum(file.stat().st_size for file in files) if files else None,
    }


def parameters_in(file: Path) -> int:
    """Numbers in a file of safetensors."""
    with safe_open(file, framework="numpy") as tensors:
        return sum(prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
