"""The hidden folder of an unfinished `neuronmoe data`: every part of it is used again by whatever needs the same.

Arrays are there in files that are whole or not there, and hold no pickled objects.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronmoe_plugins.files import digest, locked, replaced_file

NAME = ".data.partial"


class Workspace:
    """A folder in the output folder.

    Args:
        output: Where the data sets will be.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        self.path = output / NAME

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other runs away from this output.

        Raises:
            UserError: if there is one, or the output cannot be written.
        """
        with locked(self.output / f"{NAME}.lock", self.output, "run"):
            for path in self.path.rglob(".*.partial"):
                path.unlink(missing_ok=True)
            yield

    def folder(self, kind: str, needs: object) -> Path:
        """The folder of what depends on nothing but `needs` (JSON values); made if it is not there."""
        path = self.path / f"{kind}-{digest(needs)[:16]}"
        path.mkdir(parents=True, exist_ok=True)
        return path

    def remove(self) -> None:
        """Delete it all."""
        shutil.rmtree(self.path, ignore_errors=True)


def save_array(path: Path, array: NDArray[Any]) -> None:
    """Write an array, replacing an older file in one go."""
    with replaced_file(path) as file:
        np.save(file, array, allow_pickle=False)


def load_array(path: Path) -> NDArray[Any]:
    """Read an array into memory."""
    array: NDArray[Any] = np.load(path, allow_pickle=False)
    return array


def map_array(path: Path) -> NDArray[Any]:
    """An array that stays in its file; parts are read as they are used."""
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError:  # an array of no bytes cannot be mapped
        return load_array(path)
    return array
