"""A study's tables: what is done and left, and what was found."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from neuronmoe_plugins.comparison.lm_eval_results import metric_of
from neuronmoe_plugins.steps import minutes_of
from neuronmoe_plugins.study.runs import BITS_PER_BYTE, Run, count_runs, known_runs
from neuronmoe_plugins.study.trainings import Training
from neuronmoe_plugins.tables import Table, count

Row = dict[str, Any]
"""Of `results.parquet`."""


def plan(trainings: Sequence[Training]) -> tuple[Table, str]:
    """A row per arm and language with its runs and steps, and a line about all of them."""
    lines, total, left = [], Counter[str](), Counter[str]()
    minutes: dict[str, list[float]] = defaultdict(list)
    for training in trainings:
        runs = known_runs(training)
        states = Counter(_state(run) for run in runs)
        states["left"] += count_runs(training) - len(runs)
        total += states
        arm, steps = training.arm, [step.name for step in runs[0].steps]
        left.update({name: count_runs(training) for name in steps})
        for run in runs:
            for step in run.done_steps:
                minutes[step.name].append(minutes_of(step, run.stamps))
                left[step.name] -= 1
        lines.append(
            [
                *(arm.name, training.target.language, arm.method, ", ".join(steps)),
                _count(training.rank),
                _count(training.parameters),
                ", ".join(f"{rate:g}" for rate in arm.learning_rates) or "-",
                ", ".join(map(str, arm.seeds)) or "-",
                *(str(states[state]) for state in ("done", "begun", "left", "stale")),
            ]
        )
    header = ["arm", "language", "method", "steps of a run", "rank", "added\nparameters", "learning\nrates", "seeds"]
    header += ["done", "begun", "left", "stale"]
    counts = ", ".join(f"{total[state]} {state}" for state in ("done", "begun", "left", "stale"))
    line = f"{len(lines)} arms, {total.total()} runs: {counts}"
    left = +left  # without steps that are all done
    if left and all(minutes[name] for name in left):
        ahead = sum(number * fmean(minutes[name]) for name, number in left.items()) / 60
        line += f"; at the pace of the steps that are done, one at a time, {ahead:.1f} hours are left"
    return Table("", header, lines, words=(0, 1, 2, 3), groups=[3, *[1] * 9]), line


def _state(run: Run) -> str:
    states = run.states
    if "stale" in states:
        return "stale"
    return "done" if set(states) == {"done"} else "begun" if "done" in states else "left"


def table(rows: Sequence[Row]) -> Table:
    """A row per arm, language and stage: the mean over seeds at the best learning rate, for every measure.

    As long as that is not known, there is a row for each.
    """
    chosen = [row for row in rows if row["best_learning_rate"] is not False]
    measures = list(dict.fromkeys((row["measure"], row["metric"]) for row in chosen))
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in chosen:
        groups.setdefault((row["arm"], row["language"], row["stage"], row["learning_rate"]), []).append(row)
    lines = []
    for (arm, language, stage, rate), own in groups.items():
        values = {
            measure: [row["value"] for row in own if (row["measure"], row["metric"]) == measure] for measure in measures
        }
        seconds = {row["seed"]: row["training_seconds"] or 0 for row in own}
        lines.append(
            [
                *(arm, language, stage, _count(own[0]["added_parameters"])),
                "-" if rate is None else f"{rate:g}",
                str(len(seconds)),
                *(_mean(values[measure]) for measure in measures),
                f"{fmean(seconds.values()) / 60:.1f}",
            ]
        )
    titles = [name if metric == metric_of(BITS_PER_BYTE) else f"{name}\n{metric}" for name, metric in measures]
    header = ["arm", "language", "stage", "added\nparameters", "learning\nrate", "seeds", *titles, "minutes"]
    return Table("", header, lines, words=(0, 1, 2), groups=[3, *[1] * (len(header) - 3)])


def _count(number: int | None) -> str:
    return "-" if number is None else count(number)


def _mean(values: Sequence[float]) -> str:
    """The mean and, of several, half of the range that they span."""
    if not values:
        return "-"
    spread = f" ± {(max(values) - min(values)) / 2:.3f}" if len(values) > 1 else ""
    return f"{fmean(values):.3f}{spread}"
