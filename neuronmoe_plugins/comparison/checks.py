"""What must be the same in two runs so that their numbers may be compared."""

from __future__ import annotations

from neuronmoe_plugins.comparison.layout import metric_of
from neuronmoe_plugins.comparison.results import Results
from neuronmoe_plugins.comparison.samples import HASHES, Items
from neuronmoe_plugins.errors import UserError


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
        _check_same(leaf, "shots", one.shots, two.shots, first, other)
        _check_same(leaf, "the version", one.version, two.version, first, other)
        items = f"{one.items}{_limit(first)}", f"{two.items}{_limit(other)}"
        if one.items != two.items:
            _check_same(leaf, "the number of items", *items, first, other)
        directions = one.higher_is_better.get(metric), two.higher_is_better.get(metric)
        _check_same(leaf, f"higher_is_better of {metric}", *directions, first, other)


def check_items(first: Items, other: Items, task: str, first_path: object, other_path: object) -> None:
    """Raise `UserError` unless both are of the same items with the same prompts."""
    if different := set(first.numbers) ^ set(other.numbers):
        only = first_path if min(different) in first.numbers else other_path
        raise UserError(f"{task}: other items were evaluated: item {min(different)} is only in {only}")
    for number, one, two in zip(first.numbers, first.hashes, other.hashes, strict=True):
        for what, own, others in zip(HASHES.values(), one, two, strict=True):
            if own != others:
                hint = " (other examples, chat template or wording)" if what == "prompt" else ""
                raise UserError(
                    f"{task}: item {number} has another {what}{hint} in {first_path} than in {other_path}; evaluate "
                    "both in the same way"
                )


def _check_same(task: str, what: str, one: object, two: object, first: Results, other: Results) -> None:
    if one != two:
        raise UserError(f"{task}: {what}: {one} in {first.path}, {two} in {other.path}; evaluate both in the same way")


def _limit(results: Results) -> str:
    return "" if results.limit is None else f" (--limit {results.limit:g})"
