"""What `neuronmoe data` is asked for: data sets, where each is drawn from, and how much of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from neuronmoe_plugins.corpora import HubDataset
from neuronmoe_plugins.data.amounts import Amount

ROLES = ("held-out", "analysis", "replay", "target")
"""In the order in which documents are handed out: the small sets, which must be fair samples, come first."""
FORMS = ("NFC", "NFKC", "none")
FORMATS = ("jsonl", "parquet")
ANSWERS = ("error", "warn")


@dataclass(frozen=True)
class Filters:
    """Which texts count; None lets all pass."""

    min_characters: int | None = None
    max_characters: int | None = None
    language: float | None = None
    """Least probability, in (0, 1], with which language identification finds the data set's own language."""


@dataclass(frozen=True)
class LocalFiles:
    """Files on this machine.

    Attributes:
        patterns: Paths and globs as the spec has them, relative to the spec's folder.
    """

    patterns: tuple[str, ...]


@dataclass(frozen=True)
class DatasetSpec:
    """One data set.

    Attributes:
        name: Of the file, and of the entry in dataset_info.json.
        language: Its code.
        role: One of `ROLES`.
        source: Where its documents are. Of a hub data set with `rows`, the sample is drawn from the first so many;
            without, rows are taken in their order until it is complete.
        amount: How much of it.
        revision: Commit, branch or tag of a hub data set.
        text: Field or column of the texts.
        filters: Which texts count.
        broken_records: `warn` counts records without a readable text, `error` ends at the first.
        unreadable_files: `warn` leaves a file out that cannot be read to its end, `error` ends there.
        shortage: `warn` takes what there is where the source has less than the amount, `error` ends there.
    """

    name: str
    language: str
    role: str
    source: LocalFiles | HubDataset
    amount: Amount
    revision: str | None = None
    text: str = "text"
    filters: Filters = field(default_factory=Filters)
    broken_records: str = "warn"
    unreadable_files: str = "error"
    shortage: str = "error"

    def record(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class DataSpec:
    """All data sets of one `neuronmoe data`.

    Attributes:
        seed: Of the sampling.
        datasets: In the order of the file.
        normalise: Unicode form of the texts, one of `FORMS`.
        near_duplicates: Jaccard similarity, in (0, 1), from which two documents count as one; None finds equal ones.
        tokenizer: Folder or hub name of the model whose tokens are counted.
        format: One of `FORMATS`.
    """

    seed: int
    datasets: tuple[DatasetSpec, ...]
    normalise: str = "NFC"
    near_duplicates: float | None = None
    tokenizer: str | None = None
    format: str = "jsonl"

    def in_order(self) -> list[DatasetSpec]:
        """The data sets in the order in which they get documents."""
        return sorted(self.datasets, key=lambda dataset: ROLES.index(dataset.role))
