"""A comparison as JSON: every number that the tables show, unrounded and in the metric's own unit."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from neuronmoe_plugins.comparison.table import Cell, Comparison, Difference, Row


def as_record(comparison: Comparison) -> dict[str, Any]:
    """The models, how they were compared, and for each row one cell per model, in their order."""
    models = [
        {"name": model.name, "results": str(model.results), "experts": model.experts} for model in comparison.models
    ]
    return {"models": models, "bootstrap": asdict(comparison.bootstrap), "rows": [_row(row) for row in comparison.rows]}


def _row(row: Row) -> dict[str, Any]:
    column = row.measure.column
    return {
        "task": row.measure.task,
        "metric": row.measure.key,
        "benchmark": column and column.benchmark,
        "language": column and column.language,
        "higher_is_better": row.higher_is_better,
        "shots": row.shots,
        "cells": [_cell(cell) for cell in row.cells],
    }


def _cell(cell: Cell | None) -> dict[str, Any] | None:
    if cell is None:
        return None
    origin = "resamples" if cell.stderr_is_resampled else "lm-eval"
    return {
        "value": cell.value,
        "stderr": cell.stderr,
        "stderr_from": None if cell.stderr is None else origin,
        "items": cell.items,
        "difference": cell.difference and _difference(cell.difference),
    }


def _difference(difference: Difference) -> dict[str, Any]:
    test = difference.test
    return {
        "value": difference.value,
        "verdict": difference.verdict.value,
        "low": test and test.low,
        "high": test and test.high,
        "p_value": test and test.p_value,
        "untested": difference.untested and difference.untested.value,
    }
