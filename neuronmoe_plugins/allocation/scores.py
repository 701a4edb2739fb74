"""Layer scores from an analysis folder (paper, Eq. 2) or from a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from neuronmoe_plugins.errors import UserError


def layer_scores(origin: Path, source: str | None, targets: Sequence[str]) -> list[float]:
    """Scores per decoder layer.

    Args:
        origin: folder of an analysis, or a JSON file `{"layer_scores": [..]}`.
        source: the language the model knows; required for an analysis.
        targets: the languages it shall learn; at least one is required for an analysis.
    """
    if origin.is_dir():
        return _analysis_scores(origin, source, targets)
    return _file_scores(origin)


def _analysis_scores(folder: Path, source: str | None, targets: Sequence[str]) -> list[float]:
    """Distinct neurons per layer in the union over source and all targets."""
    from neuronmoe_plugins.neurons import summary
    from neuronmoe_plugins.neurons.table import layer_counts, read_neurons

    if source is None or not targets:
        raise UserError(f"{folder} is an analysis: pass --source LANGUAGE and at least one --target LANGUAGE")
    record = summary.read(folder)
    languages = [source, *targets]
    for language in languages:
        if language not in record["languages"]:
            raise UserError(f"{folder} knows no language {language!r}; it has: {', '.join(record['languages'])}")
    if len(set(languages)) < len(languages):
        raise UserError(f"--source and --target name a language twice: {', '.join(languages)}")
    counts = layer_counts(read_neurons(folder / "neurons.parquet"), languages, record["num_layers"])
    return [float(count) for count in counts]


def _file_scores(path: Path) -> list[float]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; name the folder of an analysis or a scores file") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f'{path} is not JSON ({error}); a scores file is {{"layer_scores": [..]}}') from error
    scores = content.get("layer_scores") if isinstance(content, dict) else None
    if not isinstance(scores, list):
        raise UserError(f'{path} has no list "layer_scores"; a scores file is {{"layer_scores": [..]}}')
    for layer, score in enumerate(scores):
        if isinstance(score, bool) or not isinstance(score, (int, float)):
            raise UserError(f"{path}: the score of layer {layer} is {score!r}, not a number")
    return [float(score) for score in scores]
