"""What a pruning did: what each expert was good for, what was dropped, and what that cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.files import read_json, write_json

if TYPE_CHECKING:
    from neuronmoe_plugins.neurons.arrays import IntArray, ScoreArray

RECORD = "pruning.json"
FORMAT = 1


@dataclass(frozen=True)
class ExpertTrial:
    """One expert beside the base.

    Attributes:
        layer: Index of the decoder layer.
        expert: Its index in the adapter that was pruned, from 1 on.
        shares: For each language, the share of its tokens that chose the expert.
        losses: For each language, the loss without this expert alone, in nats per token.
        dropped: Whether the pruned adapter lacks it.
    """

    layer: int
    expert: int
    shares: Sequence[float]
    losses: Sequence[float]
    dropped: bool


@dataclass(frozen=True)
class LanguageLoss:
    """The loss on one language's texts.

    Attributes:
        language: Its name.
        is_new: Whether the adapter learned it.
        tokens: How many are predicted.
        before: Nats per token with the adapter as it was.
        after: With the pruned one, as it was written.
    """

    language: str
    is_new: bool
    tokens: int
    before: float
    after: float

    @property
    def rise(self) -> float:
        """By how much of itself the loss rose."""
        return self.after / self.before - 1


def language_losses(
    languages: Sequence[str], new: Sequence[str], tokens: IntArray, before: ScoreArray, after: ScoreArray
) -> list[LanguageLoss]:
    """One for each language, of arrays (languages,); those in `new` are the learned ones."""
    numbers = zip(languages, tokens.tolist(), before.tolist(), after.tolist(), strict=True)
    return [LanguageLoss(language, language in new, *own) for language, *own in numbers]


@dataclass(frozen=True)
class Pruning:
    """All that was measured and done.

    Attributes:
        settings: Model, adapter, bound, corpora and what else the numbers depend on.
        languages: In the order of the corpora.
        experts: By layer and number.
        parameters_before: Of the adapter.
        parameters_after: Of the pruned one.
    """

    settings: dict[str, Any]
    languages: Sequence[LanguageLoss]
    experts: Sequence[ExpertTrial]
    parameters_before: int
    parameters_after: int

    @property
    def num_layers(self) -> int:
        """Decoder layers of the model."""
        return int(self.settings["num_layers"])

    @property
    def layers(self) -> dict[int, list[ExpertTrial]]:
        """The experts of each layer that was a mixture."""
        layers = dict.fromkeys(row.layer for row in self.experts)
        return {layer: [row for row in self.experts if row.layer == layer] for layer in layers}

    @property
    def dropped(self) -> list[ExpertTrial]:
        """The experts that the pruned adapter lacks."""
        return [row for row in self.experts if row.dropped]

    def save(self, folder: Path) -> None:
        """Write the record."""
        write_json(folder / RECORD, {"format": FORMAT, **asdict(self)})

    @classmethod
    def load(cls, folder: Path) -> Pruning:
        """Read what `neuronmoe prune` wrote beside an adapter.

        Raises:
            UserError: if it is missing, damaged or of another version.
        """
        path = folder / RECORD
        try:
            record = read_json(path)
            if record.pop("format") != FORMAT:
                raise ValueError(f"not of format {FORMAT}")
            record["languages"] = [LanguageLoss(**row) for row in record["languages"]]
            record["experts"] = [ExpertTrial(**row) for row in record["experts"]]
            loaded = cls(**record)
            if not loaded.experts or not loaded.languages or not loaded.num_layers:
                raise ValueError("it is not complete")
            return loaded
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is no result of `neuronmoe prune`: {error}") from error
