"""Arrays in files that are whole or not there, and hold no pickled objects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronmoe_plugins.files import replaced_file


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
