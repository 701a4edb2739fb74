"""The arrays of an analysis: their keys and types, a file of many, and where pooled activations are kept."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.files import read_json, write_json

if TYPE_CHECKING:
    from torch import Tensor

FloatArray: TypeAlias = NDArray[np.float32]
IntArray: TypeAlias = NDArray[np.int64]
ScoreArray: TypeAlias = NDArray[np.float64]
ModuleKey: TypeAlias = tuple[int, str]
"""Decoder layer and the projection's name inside it, as in `(3, "mlp.gate_proj")`."""
# An interrupted analysis repeats at most so much.
SECONDS_BETWEEN_SAVES = 20.0


class Arena(dict[ModuleKey, NDArray[Any]]):
    """Arrays by module, in a file without a header.

    Args:
        path: The file. If it does not have the right size, it is made anew.
        shapes: Shape of each module's array.
        dtype: Of all values.

    Raises:
        UserError: if the disk has no room for it; all of it is reserved at once, because a memory-mapped write to a
            full disk kills the process.
    """

    def __init__(self, path: Path, shapes: Mapping[ModuleKey, tuple[int, int]], dtype: DTypeLike) -> None:
        sizes = [rows * columns for rows, columns in shapes.values()]
        size = sum(sizes) * np.dtype(dtype).itemsize
        if not path.exists() or path.stat().st_size != size:
            _reserve(path, size)
        self._file = np.memmap(path, dtype=dtype, mode="r+", shape=(sum(sizes),))
        starts = np.cumsum([0, *sizes[:-1]])
        super().__init__(
            (key, self._file[start : start + length].reshape(shape))
            for (key, shape), start, length in zip(shapes.items(), starts, sizes, strict=True)
        )

    def flush(self) -> None:
        """Write everything to the disk."""
        self._file.flush()


def _reserve(path: Path, size: int) -> None:
    try:
        with path.open("wb") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise UserError(
            f"{path.parent} cannot hold a file of {size:,} bytes ({error.strerror}); make room, or analyse fewer "
            "sentences"
        ) from error


class Store(Protocol):
    """Keeps a row of every module for every sentence."""

    def missing(self, batches: Sequence[Sequence[int]]) -> list[int]:
        """Numbers of the batches that have not been stored yet."""

    def add(self, batch: int, sentences: Sequence[int], pooled: Mapping[ModuleKey, Tensor]) -> None:
        """Store what a batch gave, float32 (batch, units) for each module."""

    def close(self) -> None:
        """Make sure that everything added is kept."""

    def read(self, key: ModuleKey) -> Tensor:
        """All rows of a module in the order of the sentences, float32 (sentences, units)."""


class MemoryStore:
    """Keeps activations on the devices where they arise.

    Args:
        num_sentences: Number of rows.
    """

    def __init__(self, num_sentences: int) -> None:
        self._num_sentences = num_sentences
        self._values: dict[ModuleKey, Tensor] = {}

    def missing(self, batches: Sequence[Sequence[int]]) -> list[int]:
        return list(range(len(batches)))

    def add(self, batch: int, sentences: Sequence[int], pooled: Mapping[ModuleKey, Tensor]) -> None:
        import torch

        for key, values in pooled.items():
            if key not in self._values:
                self._values[key] = values.new_empty((self._num_sentences, values.shape[1]))
            self._values[key][torch.tensor(sentences, device=values.device)] = values

    def close(self) -> None:
        """Memory needs nothing."""

    def read(self, key: ModuleKey) -> Tensor:
        return self._values[key]


class FileStore:
    """Keeps activations in a folder, with the numbers of the finished batches, so that another process can go on.

    Args:
        folder: An existing folder; several processes may share it.
        units: Size of each module's rows.
        num_sentences: Number of rows.
        rank: Number of this process among those that share the folder.
    """

    def __init__(self, folder: Path, units: Mapping[ModuleKey, int], num_sentences: int, rank: int = 0) -> None:
        shapes = {key: (num_sentences, size) for key, size in units.items()}
        self._folder = folder
        layout, values = folder / "layout.json", folder / "activations.f32"
        described = [[*key, *shape] for key, shape in shapes.items()]
        # It has other modules when a plugin has come or gone in between.
        if not (layout.exists() and values.exists() and read_json(layout) == described):
            for journal in folder.glob("finished.*"):
                journal.unlink()
            write_json(layout, described)
        self._arena = Arena(values, shapes, np.float32)
        self._journal = folder / f"finished.{rank}"
        self._unsaved: list[int] = []
        self._saved_at = time.monotonic()

    def missing(self, batches: Sequence[Sequence[int]]) -> list[int]:
        finished = {
            int(line)
            for journal in self._folder.glob("finished.*")
            # A killed process may have left half a line.
            for line in journal.read_text().splitlines(keepends=True)
            if line.endswith("\n")
        }
        return [number for number in range(len(batches)) if number not in finished]

    def add(self, batch: int, sentences: Sequence[int], pooled: Mapping[ModuleKey, Tensor]) -> None:
        for key, values in pooled.items():
            self._arena[key][np.asarray(sentences)] = values.cpu().numpy()
        self._unsaved.append(batch)
        if time.monotonic() - self._saved_at > SECONDS_BETWEEN_SAVES:
            self.close()

    def close(self) -> None:
        self._arena.flush()
        with self._journal.open("a") as journal:
            journal.writelines(f"{batch}\n" for batch in self._unsaved)
        self._unsaved = []
        self._saved_at = time.monotonic()

    def read(self, key: ModuleKey) -> Tensor:
        import torch

        return torch.from_numpy(np.array(self._arena[key]))
