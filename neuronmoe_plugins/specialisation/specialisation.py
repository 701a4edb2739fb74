"""What a specialisation is: counts per expert, routing per language, a table of all scores, and perhaps the drift."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.files import read_json, sha256_of, write_json
from neuronmoe_plugins.neurons.arrays import ScoreArray

SCORES = "specialisation.parquet"
# Written last: it names the table that belongs to it.
RECORD = "specialisation.json"
FORMAT = 2
# Of `--compare base`: the model without and with its adapter, and what changed.
BASE, EXTENDED, DRIFT = "base_analysis", "extended_analysis", "drift.json"
SCHEMA = pa.schema(
    [
        ("layer", pa.int32()),
        ("expert", pa.int32()),
        ("projection", pa.string()),
        ("unit", pa.int32()),
        ("language", pa.string()),
        ("average_precision", pa.float64()),
    ]
)


@dataclass(frozen=True)
class ExpertScores:
    """One expert and one language: a row of the paper's Tables 4 and 10.

    Attributes:
        layer: Index of the decoder layer.
        expert: Its index; 0 is the original MLP.
        language: Whose neurons are counted.
        neurons: Outputs of the expert's projections; for Llama-3.2-3B 8192 + 8192 + 3072.
        high_ap: How many of them have an average precision of at least the threshold; None if not measured.
        sentences: Sentences of the language with a token at the expert.
        other_sentences: The same of all other languages.
    """

    layer: int
    expert: int
    language: str
    neurons: int
    high_ap: int | None
    sentences: int
    other_sentences: int

    @property
    def place(self) -> str:
        """The layer and the expert, as tables have them."""
        return f"L{self.layer} expert {self.expert}"

    @property
    def ratio(self) -> float | None:
        """Share of the expert's neurons that are specific to the language, 0..1; None if not measured."""
        return None if self.high_ap is None else self.high_ap / self.neurons


@dataclass(frozen=True)
class LanguageRouting:
    """Where one layer sends one language's tokens.

    Attributes:
        layer: Index of the decoder layer.
        language: Whose tokens.
        tokens: How many.
        expert_tokens: How many of them chose each expert, by its index; top-k choices per token.
        mean_weights: Mean router weight of an expert over the tokens that chose it; None where none did.
        entropy: Of the router's probabilities over all experts, mean over the tokens, in nats.
        pairs: How often two experts were chosen together, by their indices `i,j`, i < j.
    """

    layer: int
    language: str
    tokens: int
    expert_tokens: Sequence[int]
    mean_weights: Sequence[float | None]
    entropy: float
    pairs: Mapping[str, int]


@dataclass(frozen=True)
class LayerDrift:
    """How one language's neurons in one decoder layer changed when the model was extended (paper, Table 6).

    Attributes:
        layer: Index of the decoder layer.
        language: Whose neurons.
        base: How many the base model has.
        extended: How many the extended model has; in a mixture those of the original MLP, run on all tokens.
        kept: How many are the same.
    """

    layer: int
    language: str
    base: int
    extended: int
    kept: int


@dataclass(frozen=True)
class Specialisation:
    """All that was measured, and how.

    Attributes:
        settings: Model, adapter, languages, threshold, corpora and what else the numbers depend on.
        experts: By layer, expert and language.
        routing: By layer and language.
    """

    settings: dict[str, Any]
    experts: Sequence[ExpertScores]
    routing: Sequence[LanguageRouting]

    @property
    def languages(self) -> list[str]:
        """In the order of the corpora."""
        return list(self.settings["languages"])

    def of(self, language: str) -> list[ExpertScores]:
        """The rows of one language, by layer and expert."""
        return [row for row in self.experts if row.language == language]

    def save(self, folder: Path) -> None:
        """Write the record beside the table of scores, which has to be there."""
        record = {"format": FORMAT, **asdict(self), "sha256": sha256_of([folder / SCORES])}
        write_json(folder / RECORD, record)

    @classmethod
    def load(cls, folder: Path) -> Specialisation:
        """Read what `neuronmoe specialise` wrote.

        Raises:
            UserError: if it is missing, damaged, or beside the table of another run.
        """
        path = folder / RECORD
        try:
            record = read_json(path)
            version = record["format"]
            loaded = cls(
                record["settings"],
                [ExpertScores(**row) for row in record["experts"]],
                [LanguageRouting(**row) for row in record["routing"]],
            )
            fits = record["sha256"] == sha256_of([folder / SCORES])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is no result of `neuronmoe specialise`: {error}") from error
        if version != FORMAT:
            raise UserError(f"{path} is in format {version}, not {FORMAT}; run `neuronmoe specialise` again")
        if not fits:
            raise UserError(f"{path} does not belong to {folder / SCORES}; run `neuronmoe specialise` again")
        return loaded


class ScoreWriter:
    """Writes every neuron's scores, a projection at a time; used as a context.

    Args:
        path: The Parquet file.
        languages: Names of the score rows.
    """

    def __init__(self, path: Path, languages: Sequence[str]) -> None:
        self._languages = languages
        self._writer = pq.ParquetWriter(path, SCHEMA, compression="zstd")

    def __enter__(self) -> ScoreWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    def add(self, layer: int, expert: int, projection: str, scores: Mapping[int, ScoreArray]) -> None:
        """Write the scores of one projection: language index -> float64 (units,), measured ones only."""
        for language, values in scores.items():
            units = len(values)
            own = ([value] * units for value in (layer, expert, projection))
            columns = [*own, range(units), [self._languages[language]] * units, values]
            table = pa.table(dict(zip(SCHEMA.names, columns, strict=True)), schema=SCHEMA)
            self._writer.write_table(table)


def load_drift(folder: Path) -> list[LayerDrift] | None:
    """What `measure_drift` wrote into a folder; None if it did not, `UserError` if that is damaged."""
    path = folder / DRIFT
    if not path.exists():
        return None
    try:
        return [LayerDrift(**row) for row in read_json(path)]
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} is no result of `neuronmoe specialise --compare base`: {error}") from error
