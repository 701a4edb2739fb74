"""What a results file of lm-eval says about a model and its tasks (the format of lm-eval 0.4.13).

Also what must be the same in two of them so that their numbers may be compared, and how many experts the model has.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuronmoe_plugins.errors import UserError, one_line
from neuronmoe_plugins.files import read_json
from neuronmoe_plugins.models import ADAPTER
from neuronmoe_plugins.reading import is_number, read_json_object

# How lm-eval writes the end of a run into the names of its files.
DATE = r"\d{4}-\d{2}-\d{2}T\d{2}-\d{2}-\d{2}(?:\.\d+)?"
RESULTS_NAME = re.compile(rf".+_(?P<date>{DATE})\.json")
WANTED = "give a results_*.json that lm_eval --output_path wrote, or the folder that it made"
STDERR = "_stderr"


@dataclass(frozen=True)
class Score:
    """A value of one metric and its standard error, both in the metric's own unit; None where lm-eval gives none."""

    value: float
    stderr: float | None


@dataclass(frozen=True)
class Task:
    """One task or group of tasks.

    Attributes:
        name: lm-eval's.
        scores: Metric and filter, such as `acc,none`, to the score. Empty for a group that only collects tasks.
        children: A group's tasks and groups, by name; empty for a task.
        shots: Examples in each prompt; None for a group whose tasks differ.
        version: That of the task's definition.
        items: How many were evaluated.
        higher_is_better: Metric to whether it is; None where lm-eval does not say.
        aggregations: Metric to the name of the function, or its source, that makes one value of the items'.
        items_hash: lm-eval's hash of the items and prompts; None unless the run logged samples.
    """

    name: str
    scores: Mapping[str, Score]
    children: tuple[str, ...]
    shots: int | None
    version: str
    items: int
    higher_is_better: Mapping[str, bool | None]
    aggregations: Mapping[str, str]
    items_hash: str | None


@dataclass(frozen=True)
class Results:
    """A results file.

    Attributes:
        path: The file.
        date: The date in its name, which its samples files have too; None if it was renamed.
        model_name: lm-eval's: the adapter if there is one, else the model.
        model_args: What `--model_args` said, by key.
        limit: What `--limit` said.
        tasks: All tasks and groups by name, in lm-eval's order.
    """

    path: Path
    date: str | None
    model_name: str
    model_args: Mapping[str, str]
    limit: float | None
    tasks: Mapping[str, Task]

    def leaves(self, name: str) -> tuple[str, ...]:
        """The tasks that a task or group consists of, each once: itself, or all that are below it."""
        children = self.tasks[name].children
        found = [leaf for child in children for leaf in self.leaves(child)]
        return tuple(dict.fromkeys(found)) if children else (name,)

    def direction(self, name: str, metric: str) -> bool | None:
        """Whether higher is better; None if lm-eval does not say, or the tasks of a group differ."""
        given = {self.tasks[leaf].higher_is_better.get(metric) for leaf in self.leaves(name)} - {None}
        return given.pop() if len(given) == 1 else None

    def descendants(self, name: str) -> set[str]:
        """All tasks and groups below a group."""
        children = self.tasks[name].children
        return set(children).union(*(self.descendants(child) for child in children))


def find_results_file(path: Path) -> Path:
    """The file itself, or the only results file in or below a folder.

    Raises:
        UserError: if there is none, or more than one.
    """
    if not path.is_dir():
        return path
    found = sorted(file for file in path.rglob("*.json") if RESULTS_NAME.fullmatch(file.name))
    if not found:
        raise UserError(f"{path} has no results file; {WANTED}")
    if len(found) > 1:
        names = ", ".join(str(file.relative_to(path)) for file in found)
        raise UserError(f"{path} has {len(found)} results files, name one of them: {names}")
    return found[0]


def read_results(path: Path) -> Results:
    """Read a results file, or the only one in a folder.

    Raises:
        UserError: if it is missing, not JSON or not by lm-eval, or has a value that is not a finite number.
    """
    file = find_results_file(path)
    content = read_json_object(file, WANTED, wrong="is not a results file of lm-eval")
    try:
        return _parse(file, content)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        what = f"it lacks {error}" if isinstance(error, KeyError) else one_line(error)
        raise UserError(f"{file} is not a results file of lm-eval ({what}); {WANTED}") from error


def _parse(path: Path, content: dict[str, Any]) -> Results:
    children: dict[str, list[str]] = content["group_subtasks"]
    below = {child for names in children.values() for child in names}
    if missing := sorted(below - content["results"].keys()):
        raise UserError(f"{path} has no results of {missing[0]}, though it belongs to a group there")
    named = RESULTS_NAME.fullmatch(path.name)
    return Results(
        path=path,
        date=named["date"] if named else None,
        model_name=str(content.get("model_name") or content["config"]["model"]),
        model_args=_model_args(content["config"].get("model_args")),
        limit=content["config"].get("limit"),
        tasks={name: _task(path, content, name) for name in content["results"]},
    )


def _task(path: Path, content: dict[str, Any], name: str) -> Task:
    result = content["results"][name]
    children = tuple(content["group_subtasks"].get(name, ()))
    counts = content["n-samples"].get(name, {})
    metrics = content["configs"].get(name, {}).get("metric_list") or []
    return Task(
        name=name,
        scores=_scores(path, name, result),
        children=children,
        shots=content["n-shot"].get(name),
        version=str(content["versions"].get(name)),
        items=int(counts.get("effective", result.get("sample_len", 0))),
        higher_is_better=content["higher_is_better"].get(name) or {},
        aggregations={entry["metric"]: str(entry["aggregation"]) for entry in metrics if "aggregation" in entry},
        items_hash=content.get("task_hashes", {}).get(name),
    )


def _scores(path: Path, name: str, result: Mapping[str, Any]) -> dict[str, Score]:
    """The entries `metric,filter` with their `metric_stderr,filter`; all others describe the task."""
    scores = {}
    for key, value in result.items():
        metric, comma, filter_name = key.partition(",")
        if not comma or metric.endswith(STDERR) or not is_number(value):
            continue
        if not math.isfinite(value):
            raise UserError(f"{path}: {metric_of(key)} of {name} is {value}, not a finite number")
        stderr = result.get(f"{metric}{STDERR},{filter_name}")
        scores[key] = Score(value, stderr if is_number(stderr) and math.isfinite(stderr) else None)
    return scores


def _model_args(given: object) -> dict[str, str]:
    """`--model_args` by key; lm-eval's command records a mapping, its Python interface also `a=1,b=2`."""
    if isinstance(given, dict):
        return {str(key): str(value) for key, value in given.items()}
    pairs = (part.partition("=") for part in str(given or "").split(","))
    return {key.strip(): value for key, _, value in pairs}


def metric_of(key: str) -> str:
    """The metric of a key such as `acc_norm,none`."""
    return key.partition(",")[0]


def check_settings(first: Results, other: Results, name: str, key: str) -> None:
    """Raise `UserError` unless a task or group has the same metric, tasks, versions, shots and items in both."""
    if key not in other.tasks[name].scores or key not in first.tasks[name].scores:
        has, lacks = (first, other) if key in first.tasks[name].scores else (other, first)
        raise UserError(f"{name}: {has.path} has the metric {key}, {lacks.path} has not")
    if different := set(first.leaves(name)) ^ set(other.leaves(name)):
        raise UserError(f"{name}: {sorted(different)[0]} belongs to it in only one of {first.path} and {other.path}")
    for leaf in first.leaves(name):
        one, two = first.tasks[leaf], other.tasks[leaf]
        metric = metric_of(key)
        limits = ["" if run.limit is None else f" (--limit {run.limit:g})" for run in (first, other)]
        for what, own, others, (after_own, after_others) in (
            ("shots", one.shots, two.shots, ("", "")),
            ("the version", one.version, two.version, ("", "")),
            ("the number of items", one.items, two.items, limits),
            (
                f"higher_is_better of {metric}",
                one.higher_is_better.get(metric),
                two.higher_is_better.get(metric),
                ("", ""),
            ),
        ):
            if own != others:
                raise UserError(
                    f"{leaf}: {what}: {own}{after_own} in {first.path}, {others}{after_others} in {other.path}; "
                    "evaluate both in the same way"
                )


def count_experts(model_args: Mapping[str, str]) -> int | None:
    """All experts of the `moe` adapter in `--model_args`, a layer's original MLP counting as one (paper, Table 1).

    Args:
        model_args: lm-eval's, by key: `peft` names the adapter, `pretrained` the model.

    Returns:
        The number; None without an adapter of this kind, or where its folder, or that of the model if the number of
        layers is not clear without it, cannot be read.
    """
    adapter = _read_or_empty(model_args.get("peft"), ADAPTER[0])
    experts, layers = adapter.get("num_experts"), adapter.get("layers_to_transform")
    if adapter.get("peft_type") != "MOE" or experts is None:
        return None
    if isinstance(experts, list) and layers is None:
        return sum(experts)
    model = _read_or_empty(model_args.get("pretrained"), "config.json")
    configs = (config for config in (model, model.get("text_config", {})) if "num_hidden_layers" in config)
    num_layers = next((int(config["num_hidden_layers"]) for config in configs), None)
    if num_layers is None and isinstance(layers, list) and layers == list(range(len(layers))):
        num_layers = len(layers)  # the published code names every layer
    if num_layers is None:
        return None
    transformed = range(num_layers) if layers is None else [layers] if isinstance(layers, int) else layers
    if isinstance(experts, int):
        experts = [experts] * len(transformed)
    elif len(experts) == num_layers:
        experts = [experts[layer] for layer in transformed]
    return num_layers - len(transformed) + sum(experts)


def _read_or_empty(folder: str | None, name: str) -> dict[str, Any]:
    """A JSON object of a folder; empty if it cannot be read."""
    try:
        return {} if folder is None else dict(read_json(Path(folder) / name))
    except (OSError, ValueError):
        return {}
