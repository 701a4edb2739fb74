"""What a compression is told, and what became of the experts of each layer and of the loss on each language."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.files import new_folder, write_json
from neuronmoe_plugins.options import check_options, option
from neuronmoe_plugins.pruning.record import LanguageLoss

RECORD = "compression.json"


def _rank(flag: str, value: str) -> None:
    if not all(part.strip().isdecimal() and int(part) for part in value.split(",")):
        raise UserError(
            f"{flag} is {value}; it must be a whole number, 1 or more, or one per layer with commas between"
        )


@dataclass(frozen=True)
class CompressRequest:
    """What `neuronmoe compress` is told."""

    adapter: Path = option("Folder of an adapter.", metavar="ADAPTER")
    rank: str = option("Of the new experts, or one per layer with commas between.", value="N[,N...]", check=_rank)
    output: Path = option("Folder for the compressed adapter.", check=new_folder)
    model: str | None = option("Folder or hub name of the base model.", None, shown="the one that the adapter names")
    data: Path | None = option(
        "Folder of `neuronmoe data`: also measure the loss on its texts of role held-out, or else analysis.", None
    )

    def __post_init__(self) -> None:
        check_options(self)

    @property
    def ranks(self) -> int | list[int]:
        """The rank, or one per layer."""
        ranks = list(map(int, self.rank.split(",")))
        return ranks if len(ranks) > 1 else ranks[0]


@dataclass(frozen=True)
class CompressedLayer:
    """What became of the experts of one layer.

    Attributes:
        layer: Index of the decoder layer.
        experts: Beside the base MLP.
        rank: Of each.
        delta: Squared Frobenius norm of what they add to the base's weights, over all of them.
        lost: The same of what the low-rank deltas, as they are saved, leave of it.
    """

    layer: int
    experts: int
    rank: int
    delta: float = 0.0
    lost: float = 0.0

    @property
    def relative_error(self) -> float:
        """Frobenius norm of what is lost, relative to that of all; 0 of nothing."""
        return (self.lost / self.delta) ** 0.5 if self.delta else 0.0

    @property
    def energy_kept(self) -> float:
        """Share of the squared norm that is kept."""
        return 1 - self.relative_error**2

    def errors(self) -> dict[str, float]:
        """Both by their names."""
        return {"relative_error": self.relative_error, "energy_kept": self.energy_kept}


@dataclass(frozen=True)
class Compression:
    """What was written.

    Attributes:
        layers: By decoder layer.
        parameters: Of the compressed adapter.
        parameters_before: Of the adapter that it was made from.
        languages: The loss with either, where there was data.
        texts: How that was sampled.
    """

    layers: Sequence[CompressedLayer]
    parameters: int
    parameters_before: int
    languages: Sequence[LanguageLoss] = ()
    texts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def total(self) -> CompressedLayer:
        """All layers together; its index and rank mean nothing."""
        experts, delta, lost = (sum(getattr(row, name) for row in self.layers) for name in ("experts", "delta", "lost"))
        return CompressedLayer(-1, experts, 0, delta, lost)

    def save(self, folder: Path, **settings: str) -> None:
        """Write `compression.json`."""
        layers = [asdict(row) | row.errors() for row in self.layers]
        write_json(folder / RECORD, settings | self.total.errors() | asdict(self) | {"layers": layers})
