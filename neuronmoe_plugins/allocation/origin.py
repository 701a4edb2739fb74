"""Where layer scores come from: what the folder of an analysis and a file of one's own have in common."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from neuronmoe_plugins.allocation.sizes import MlpShapes, read_shapes
from neuronmoe_plugins.errors import UserError


class Origin(ABC):
    """What an allocation is made from.

    Attributes:
        path: The folder or file, as it was named.
        json_path: The analysis' summary.json, or the file itself.
        record: What the JSON file holds.
        num_layers: Decoder layers of the model.
        shapes: The sizes of the model's MLPs, None where they are not known.
        sha256: Checksum of the JSON file.
    """

    counts_neurons: bool
    """Whether scores are counted here, rather than read."""

    def __init__(self, path: Path, json_path: Path, record: dict[str, Any], num_layers: int) -> None:
        self.path, self.json_path = path, json_path
        self.record, self.num_layers = record, num_layers
        self.shapes: MlpShapes | None = read_shapes(json_path, record, num_layers)
        self.sha256 = hashlib.sha256(json_path.read_bytes()).hexdigest()

    @abstractmethod
    def check_languages(self, source: str | None, targets: Sequence[str]) -> None:
        """Raise `UserError` for languages that cannot be meant."""

    @abstractmethod
    def similarities(self, source: str | None, targets: Sequence[str]) -> list[float]:
        """How alike each layer treats source and targets: one mean cosine per layer."""

    def require(self, key: str) -> Any:
        """The value of a key; raises `UserError` naming file and key if it is missing or null."""
        if self.record.get(key) is None:
            raise UserError(f"{self.json_path} has no {key}; {self.remedy_for(key)}")
        return self.record[key]

    def require_shapes(self) -> MlpShapes:
        """The sizes of the model's MLPs; raises `UserError` naming the keys if they are not known."""
        if self.shapes is None:
            missing = next(key for key in ("hidden_size", "mlp_parameters") if self.record.get(key) is None)
            raise UserError(
                f"--max-added-parameters needs hidden_size and mlp_parameters: {self.json_path} has no {missing}; "
                f"{self.remedy_for(missing)}"
            )
        return self.shapes

    @abstractmethod
    def remedy_for(self, key: str) -> str:
        """What to do about a key that is missing or null."""
