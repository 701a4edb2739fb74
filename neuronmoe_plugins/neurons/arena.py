"""One memory-mapped file that holds an array per module; several processes can fill it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.neurons.arrays import ModuleKey


class Arena(Mapping[ModuleKey, NDArray[Any]]):
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
        self._arrays = {
            key: self._file[start : start + length].reshape(shape)
            for (key, shape), start, length in zip(shapes.items(), starts, sizes, strict=True)
        }

    def __getitem__(self, key: ModuleKey) -> NDArray[Any]:
        return self._arrays[key]

    def __iter__(self) -> Iterator[ModuleKey]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

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
            f"{path.parent} cannot hold a file of {size / 1e9:.1f} GB ({error.strerror}); make room, or analyse fewer "
            "sentences"
        ) from error
