"""How lm-eval's values are made of items' values, found out from both."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neuronmoe_plugins.comparison import Difference, compare, evidence
from neuronmoe_plugins.comparison.bootstrap import BY_NAME, candidates
from neuronmoe_plugins.comparison.layout import Untested
from runs import DATE, load, save_run

# The mean and the perplexity of items of this value are the same.
FIXED_POINT = 0.5671432904097838


def only_difference(*paths: Path) -> Difference:
    (row,) = compare(paths).rows
    assert row.cells[1] is not None and row.cells[1].difference is not None
    return row.cells[1].difference


def interval(difference: Difference) -> tuple[float, float]:
    assert difference.test is not None
    return difference.test.low, difference.test.high


def grouped(folder: Path, one: Sequence[float], two: Sequence[float], reported: dict[str, dict[str, float]]) -> Path:
    """A run of the group `both` of two tasks."""
    return save_run(folder, {"one": {"acc": one}, "two": {"acc": two}}, reported, {"both": ["one", "two"]})


@pytest.mark.parametrize("name", ["mean", "perplexity", "bits_per_byte", "weighted_perplexity"])
def test_statistics_are_lm_evals(name: str) -> None:
    from lm_eval.api.registry import get_aggregation

    statistic = BY_NAME[name]
    generator = np.random.default_rng(0)
    numerators = -generator.random(20) * 50
    denominators = generator.integers(10, 90, 20) if statistic.is_ratio else np.ones(20)
    items = list(zip(numerators, denominators, strict=True)) if statistic.is_ratio else list(numerators)
    sums = np.array([numerators.sum(), denominators.sum()])
    assert float(statistic.of_sums(sums)) == pytest.approx(get_aggregation(name)(items), rel=1e-12)


def test_a_named_aggregation_is_no_other() -> None:
    assert [statistic.name for statistic in candidates("perplexity", False)] == ["perplexity"]
    assert [statistic.name for statistic in candidates(None, False)] == ["mean", "perplexity"]
    assert [statistic.name for statistic in candidates("def own(items): ...", True)] == [
        "bits_per_byte",
        "weighted_perplexity",
    ]


def test_the_weighting_must_fit_both_runs(tmp_path: Path) -> None:
    first = grouped(tmp_path / "a", [0, 0], [0] * 6, {"both": {"acc": 0.0}})  # fits either weighting
    by_task = grouped(tmp_path / "b", [1, 1], [0] * 6, {"both": {"acc": 0.5}})
    by_size = grouped(tmp_path / "c", [1, 1], [0] * 6, {"both": {"acc": 0.25}})
    assert interval(only_difference(first, by_task)) == (0.5, 0.5)
    assert interval(only_difference(first, by_size)) == (0.25, 0.25)
    assert only_difference(by_task, by_size).untested is Untested.AGGREGATION


def test_the_statistic_must_fit_both_runs(tmp_path: Path) -> None:
    first = save_run(tmp_path / "a", {"own": {"loss": [FIXED_POINT] * 2}})
    second = save_run(tmp_path / "b", {"own": {"loss": [0, 1]}}, {"own": {"loss": math.exp(-0.5)}})
    third = save_run(tmp_path / "c", {"own": {"loss": [0, 1]}})
    expected = math.exp(-1) - FIXED_POINT, 1 - FIXED_POINT
    assert interval(only_difference(first, second)) == pytest.approx(expected)
    assert interval(only_difference(first, third)) == pytest.approx((-FIXED_POINT, 1 - FIXED_POINT))
    assert only_difference(second, third).untested is Untested.AGGREGATION


def test_the_statistic_must_fit_every_task_of_a_group(tmp_path: Path) -> None:
    reported = {"two": {"acc": math.exp(-0.5)}, "both": {"acc": (0.5 + math.exp(-0.5)) / 2}}
    paths = [grouped(tmp_path / name, [0, 1], [1, 0], reported) for name in "ab"]
    assert only_difference(*paths).untested is Untested.AGGREGATION


def test_a_group_whose_value_is_no_mean_of_its_tasks_is_not_tested(tmp_path: Path) -> None:
    paths = [grouped(tmp_path / name, [0, 1], [1, 1, 0], {"both": {"acc": 0.77}}) for name in "ab"]
    assert only_difference(*paths).untested is Untested.AGGREGATION


def test_tasks_without_the_metric_do_not_count_in_the_group(tmp_path: Path) -> None:
    paths = []
    for name, right in (("a", 0), ("b", 1)):
        tasks: dict[str, dict[str, list[Any]]] = {"one": {"acc": [right] * 4}, "two": {"f1": [0.5, 0.5]}}
        paths.append(save_run(tmp_path / name, tasks, {"both": {"acc": right}}, {"both": ["one", "two"]}))
    assert interval(only_difference(*paths)) == (1, 1)


def test_items_that_are_no_numbers_are_not_tested(tmp_path: Path) -> None:
    for values in (["a", "b"], [[1, 2, 3], [1, 2, 3]], [[1, 2], 3], [None, 1]):
        paths = [save_run(tmp_path / name, {"own": {"odd": values}}, {"own": {"odd": 0.4}}) for name in "ab"]
        assert only_difference(*paths).untested is Untested.AGGREGATION


def test_pairs_under_the_name_of_a_mean_are_not_tested(tmp_path: Path) -> None:
    paths = []
    for name in "ab":
        path = save_run(tmp_path / name, {"own": {"odd": [[1, 2], [3, 4]]}}, {"own": {"odd": 2.0}})
        content = load(path)
        content["configs"]["own"]["metric_list"] = [{"metric": "odd", "aggregation": "mean"}]
        path.write_text(json.dumps(content))
        paths.append(path)
    assert only_difference(*paths).untested is Untested.AGGREGATION


def test_a_resample_may_have_no_value(tmp_path: Path) -> None:
    values = {"own": {"bits_per_byte": [[-7, 10], [0, 0]]}}
    reported = {"own": {"bits_per_byte": 0.7 / math.log(2)}}
    paths = [save_run(tmp_path / name, values, reported) for name in "ab"]
    assert only_difference(*paths).untested is Untested.UNDEFINED


def test_every_filter_has_its_own_items(tmp_path: Path) -> None:
    paths = []
    for name, strict in (("a", 0), ("b", 1)):
        path = save_run(tmp_path / name, {"own": {"exact_match": [strict] * 3}})
        content = load(path)
        content["results"]["own"] = {"exact_match,strict": strict, "exact_match,loose": 1.0}
        path.write_text(json.dumps(content | {"task_hashes": {}}))
        samples = path.with_name(f"samples_own_{DATE}.jsonl")
        lines = [json.loads(line) for line in samples.read_text().splitlines()]
        both = [line | {"filter": "strict"} for line in lines]
        both += [line | {"filter": "loose", "exact_match": 1} for line in lines]
        samples.write_text("".join(json.dumps(line) + "\n" for line in both))
        paths.append(path)
    rows = {row.measure.metric: row for row in compare(paths).rows}
    assert list(rows) == ["exact_match,strict", "exact_match,loose"]
    ends = [interval(cell.difference) for row in rows.values() if (cell := row.cells[1]) and cell.difference]
    assert ends == [(1, 1), (0, 0)]


def test_every_samples_file_is_read_once_and_only_if_it_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    real = evidence.read_samples
    monkeypatch.setattr(evidence, "read_samples", lambda path, *given: (read.append(path), real(path, *given))[1])
    paths = [save_run(tmp_path / name, {"own": {"acc": [0, 1], "acc_norm": [1, 1]}}) for name in "abc"]
    compare(paths)
    assert read == [path.with_name(f"samples_own_{DATE}.jsonl") for path in paths]
    read.clear()
    content = load(paths[0])
    content["results"]["own"] = {"acc,none": 0.5, "acc_stderr,none": 0.5}
    paths[0].write_text(json.dumps(content))
    compare(paths[:1])
    assert not read
