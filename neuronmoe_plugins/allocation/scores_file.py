"""Layer scores from a JSON file that the user wrote."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from neuronmoe_plugins.allocation.checks import is_number, shown
from neuronmoe_plugins.allocation.origin import Origin
from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.reading import read_json_object

FORM = 'a scores file is {"layer_scores": [..]}, or {"layer_similarities": [..]} for layer-similarity'


class ScoresFile(Origin):
    """A JSON file with `layer_scores` or `layer_similarities`, and perhaps `hidden_size` and `mlp_parameters`.

    Raises:
        UserError: naming the file, and the key and layer that is wrong.
    """

    counts_neurons = False

    def __init__(self, path: Path) -> None:
        missing = f"{path} does not exist; name the folder of an analysis or a scores file"
        record = read_json_object(path, FORM, missing=missing, wrong='has no list "layer_scores"')
        for key in (keys := [key for key in ("layer_scores", "layer_similarities") if key in record]):
            _check_numbers(path, key, record[key])
        if not keys:
            raise UserError(f'{path} has no list "layer_scores"; {FORM}')
        lengths = [len(record[key]) for key in keys]
        if len(set(lengths)) > 1:
            raise UserError(f"{path}: layer_scores has {lengths[0]} layers, layer_similarities {lengths[1]}")
        super().__init__(path, path, record, lengths[0])

    def remedy_for(self, key: str) -> str:
        """To add it."""
        return "add it"

    def check_languages(self, source: str | None, targets: Sequence[str]) -> None:
        """Any languages will do: they are recorded as given."""

    def layer_scores(self) -> list[float]:
        """The scores; raises `UserError` if the file has only similarities."""
        return self._list("layer_scores")

    def similarities(self, source: str | None, targets: Sequence[str]) -> list[float]:
        """The similarities; raises `UserError` if the file has only scores."""
        return self._list("layer_similarities")

    def _list(self, key: str) -> list[float]:
        if key not in self.record:
            raise UserError(f'{self.path} has no list "{key}"; {FORM}')
        return [float(number) for number in self.record[key]]


def _check_numbers(path: Path, key: str, numbers: object) -> None:
    if not isinstance(numbers, list) or not numbers:
        raise UserError(f"{path}: {key} must be a list with one number per decoder layer")
    for layer, number in enumerate(numbers):
        if not is_number(number):
            raise UserError(f"{path}: the entry of {key} for layer {layer} is {shown(number)}, not a number")
