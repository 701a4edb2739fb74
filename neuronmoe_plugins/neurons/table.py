"""The language-specific neurons of a model: chosen from the scores, counted per layer, kept as Parquet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from neuronmoe_plugins.errors import UserError

if TYPE_CHECKING:
    from neuronmoe_plugins.neurons.arrays import ModuleKey, ScoreArray

NeuronIdentity = Literal["module", "unit"]
"""What tells a layer's neurons apart: module and unit index, or, as in the published code, the unit index alone."""

SCHEMA = pa.schema(
    [
        ("language", pa.string()),
        ("layer", pa.int32()),
        ("module", pa.string()),
        ("unit", pa.int32()),
        ("score", pa.float64()),
    ]
)


@dataclass(frozen=True)
class Neuron:
    """One row: neuron `unit` of `module` in decoder layer `layer` is specific to `language`."""

    language: str
    layer: int
    module: str
    unit: int
    score: float


def select_neurons(
    scores: Mapping[ModuleKey, ScoreArray], languages: Sequence[str], top_n: int | None, min_score: float | None
) -> list[Neuron]:
    """The `top_n` best neurons of each language that score above `min_score` (paper, section 3.1).

    Args:
        scores: for each (layer, module) float64 (languages, units).
        languages: names of the score rows.
        top_n: at most so many per language, if not None.
        min_score: only those that score above it, if not None.

    Returns:
        neurons by language, best first; of equal scores the one in the earlier module of `scores`, then the lower unit.
    """
    keys = list(scores)
    neurons: list[Neuron] = []
    for row, language in enumerate(languages):
        flat = np.concatenate([scores[key][row] for key in keys])
        best = np.argsort(-flat, kind="stable")[:top_n]
        best = best if min_score is None else best[flat[best] > min_score]
        for ((layer, module), unit), score in zip(locate(best, keys, scores), flat[best], strict=True):
            neurons.append(Neuron(language, layer, module, unit, float(score)))
    return neurons


def locate(
    places: NDArray[np.intp], keys: Sequence[ModuleKey], scores: Mapping[ModuleKey, ScoreArray]
) -> list[tuple[ModuleKey, int]]:
    """Module and unit of places in the concatenation of all modules' units, in the order of `keys`."""
    ends = np.cumsum([scores[key].shape[1] for key in keys])
    modules = np.searchsorted(ends, places, side="right")
    starts = np.concatenate([[0], ends[:-1]])
    return [(keys[module], int(place - starts[module])) for module, place in zip(modules, places, strict=True)]


def layer_counts(
    neurons: Sequence[Neuron],
    languages: Sequence[str],
    num_layers: int,
    identity: NeuronIdentity = "module",
) -> list[int]:
    """Number of distinct neurons per layer over the given languages: the S_l of the paper's Eq. 2."""
    wanted = set(languages)
    distinct: list[set[tuple[str, int]]] = [set() for _ in range(num_layers)]
    for neuron in neurons:
        if neuron.language in wanted:
            distinct[neuron.layer].add((neuron.module if identity == "module" else "", neuron.unit))
    return [len(units) for units in distinct]


def write_neurons(path: Path, neurons: Sequence[Neuron]) -> None:
    """Write neurons as Parquet with the columns of `SCHEMA`."""
    columns = {name: [getattr(neuron, name) for neuron in neurons] for name in SCHEMA.names}
    pq.write_table(pa.table(columns, schema=SCHEMA), path)


def read_neurons(path: Path) -> list[Neuron]:
    """Read what `write_neurons` wrote; raises `UserError` for a missing or foreign file."""
    try:
        table = pq.read_table(path, columns=SCHEMA.names).cast(SCHEMA)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} is not a neuron table ({error}); run `neuronmoe analyze` again") from error
    return [Neuron(**row) for row in table.to_pylist()]
