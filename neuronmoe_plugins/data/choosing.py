"""Draws documents in order until the amount is reached, each of them once over all data sets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from neuronmoe_plugins.data.examining import EXAMINED, KEPT, REASONS
from neuronmoe_plugins.data.near_duplicates import NearDuplicates
from neuronmoe_plugins.data.spec import Amount
from neuronmoe_plugins.data.workspace import map_array, save_array

MOST_AT_ONCE = 1 << 19
FIRST_BYTES_PER_TOKEN = 2
"""Few enough that the first round hardly ever examines more than is drawn."""
MARGIN = 1.05
EQUAL, ELSEWHERE, SIMILAR = "equal to another", "in another data set", "near another"

Examine = Callable[[NDArray[np.void]], tuple[NDArray[np.void], NDArray[np.uint64] | None]]
"""From `CANDIDATE`s to their `EXAMINED` and, for near-duplicates, their signatures."""


class KeyFiles:
    """Sorted keys of documents, in files.

    Args:
        paths: uint64 .npy files, each sorted.
    """

    def __init__(self, paths: Iterable[Path] = ()) -> None:
        self.paths = list(paths)

    def has(self, keys: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Whether each key is there."""
        found = np.zeros(len(keys), dtype=bool)
        for path in self.paths:
            known = map_array(path)
            positions = np.minimum(np.searchsorted(known, keys), len(known) - 1)
            found |= known[positions] == keys
        return found


@dataclass
class Choice:
    """What was drawn of a source.

    Attributes:
        documents, tokens, size: Drawn, and their tokens and bytes.
        passed_over: Reason -> documents that came up and were not drawn.
        reached: Whether the amount is complete.
    """

    documents: int = 0
    tokens: int = 0
    size: int = 0
    passed_over: Counter[str] = field(default_factory=Counter)
    reached: bool = False

    def so_far(self, unit: str) -> int:
        """How much of the amount there is."""
        return {"tokens": self.tokens, "bytes": self.size}.get(unit, self.documents)


class Chooser:
    """Draws the documents of one data set.

    Args:
        amount: How much.
        examine: Looks at texts, or None where the scan has told everything.
        elsewhere: Keys of the data sets before.
        near: Finds near-duplicates over all data sets, or None.
        folder: Where the drawn documents are written: `chosen-N.npy` (`CANDIDATE`s by place), `keys-N.npy` (sorted) and
            `bands-N.npy`.
    """

    def __init__(
        self, amount: Amount, examine: Examine | None, elsewhere: KeyFiles, near: NearDuplicates | None, folder: Path
    ) -> None:
        self._amount, self._examine, self._elsewhere, self._near = amount, examine, elsewhere, near
        self._folder = folder
        self._own = KeyFiles()
        self._looked_at = 0
        self.choice = Choice()

    def choose(self, batches: Iterator[NDArray[np.void]], count_all: bool) -> Choice:
        """Draw from batches of `CANDIDATE`s in the order of drawing.

        Args:
            batches: Of the source.
            count_all: Whether equal documents are counted to the end of the source, after the amount is reached, too.
        """
        for batch in batches:
            fresh = self._fresh(batch)
            while len(fresh) and not self.choice.reached:
                size = self._round_size(fresh)
                self._draw(fresh[:size])
                fresh = fresh[size:]
            if self.choice.reached and not count_all:
                break
        if self._amount.number is None:
            self.choice.reached = True
        return self.choice

    def _fresh(self, batch: NDArray[np.void]) -> NDArray[np.void]:
        """The documents of a batch that are nowhere yet."""
        _, first = np.unique(batch["key"], return_index=True)
        mask = np.zeros(len(batch), dtype=bool)
        mask[first] = True
        mask &= ~self._own.has(batch["key"])
        self.choice.passed_over[EQUAL] += int((~mask).sum())
        taken = self._elsewhere.has(batch["key"]) & mask
        self.choice.passed_over[ELSEWHERE] += int(taken.sum())
        return batch[mask & ~taken]

    def _round_size(self, fresh: NDArray[np.void]) -> int:
        """How many to look at next: about as many as will complete the amount."""
        if self._examine is None or self._amount.number is None:
            return MOST_AT_ONCE
        so_far = self.choice.so_far(self._amount.unit)
        missing = self._amount.number - so_far
        if so_far:
            wanted = int(missing / (so_far / self._looked_at) * MARGIN) + 16
        elif self._amount.unit in ("bytes", "tokens"):
            missing *= FIRST_BYTES_PER_TOKEN if self._amount.unit == "tokens" else 1
            wanted = int(np.searchsorted(np.cumsum(fresh["size"], dtype=np.int64), missing)) + 1
        else:
            wanted = int(missing * MARGIN) + 16
        # Every round reads the source again: where few documents pass, the rounds grow.
        return min(MOST_AT_ONCE, max(wanted, self._looked_at // 4))

    def _draw(self, candidates: NDArray[np.void]) -> None:
        examined, bands = self._look_at(candidates)
        for verdict, reason in REASONS.items():
            self.choice.passed_over[reason] += int((examined["verdict"] == verdict).sum())
        kept = np.flatnonzero(examined["verdict"] == KEPT)
        kept = kept[self._differ(candidates[kept], examined[kept])]
        drawn: list[NDArray[np.intp]] = []
        while len(kept) and not self.choice.reached:
            number = self._up_to_amount(examined[kept])
            part, kept = kept[:number], kept[number:]
            if self._near is not None and bands is not None:
                alone = self._near.first_of(bands[part])
                self.choice.passed_over[SIMILAR] += int((~alone).sum())
                part = part[alone]
            self._count(examined[part])
            drawn.append(part)
        chosen = np.concatenate([np.empty(0, np.intp), *drawn])
        if len(chosen):
            self._save(candidates[chosen], examined[chosen], None if bands is None else bands[chosen])

    def _look_at(self, candidates: NDArray[np.void]) -> tuple[NDArray[np.void], NDArray[np.uint64] | None]:
        self._looked_at += len(candidates)
        if self._examine is not None:
            return self._examine(candidates)
        examined = np.zeros(len(candidates), EXAMINED)
        examined["size"], examined["written"] = candidates["size"], candidates["key"]
        return examined, None

    def _differ(self, candidates: NDArray[np.void], examined: NDArray[np.void]) -> NDArray[np.bool_]:
        """Whether what would be written differs from all before; a sentence may be in several documents."""
        written = examined["written"]
        _, first = np.unique(written, return_index=True)
        different = np.zeros(len(written), dtype=bool)
        different[first] = True
        other = written != candidates["key"]
        different[other] &= ~(self._own.has(written[other]) | self._elsewhere.has(written[other]))
        self.choice.passed_over[EQUAL] += int((~different).sum())
        return different

    def _up_to_amount(self, examined: NDArray[np.void]) -> int:
        """How many of these complete the amount, or all."""
        if self._amount.number is None:
            return len(examined)
        missing = self._amount.number - self.choice.so_far(self._amount.unit)
        if self._amount.unit in ("documents", "sentences"):
            return min(missing, len(examined))
        sizes = examined["tokens" if self._amount.unit == "tokens" else "size"]
        return min(int(np.searchsorted(np.cumsum(sizes, dtype=np.int64), missing)) + 1, len(examined))

    def _count(self, examined: NDArray[np.void]) -> None:
        choice, number = self.choice, self._amount.number
        choice.documents += len(examined)
        choice.tokens += int(examined["tokens"].sum(dtype=np.int64))
        choice.size += int(examined["size"].sum(dtype=np.int64))
        choice.reached = number is not None and choice.so_far(self._amount.unit) >= number

    def _save(self, candidates: NDArray[np.void], examined: NDArray[np.void], bands: NDArray[np.uint64] | None) -> None:
        number = len(self._own.paths)
        by_place = candidates[np.lexsort((candidates["row"], candidates["shard"]))]
        keys = np.unique(np.concatenate([candidates["key"], examined["written"]]))
        for name, array in (("chosen", by_place), ("keys", keys), ("bands", bands)):
            if array is not None:
                save_array(self._folder / f"{name}-{number:05}.npy", array)
        self._own.paths.append(self._folder / f"keys-{number:05}.npy")
