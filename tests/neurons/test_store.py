"""Stores keep what was added, in sentence order, and a file goes on where another process stopped."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.neurons import arrays
from neuronmoe_plugins.neurons.arrays import FileStore, MemoryStore

UNITS = {(0, "a"): 3, (0, "b"): 5, (1, "a"): 3}
BATCHES = [[2, 0], [3], [1, 4]]


def pooled(sentences: list[int]) -> dict[tuple[int, str], torch.Tensor]:
    """A value that tells layer, module, sentence and unit."""
    rows = torch.tensor(sentences, dtype=torch.float32)[:, None]
    return {key: 1000 * key[0] + 100 * (key[1] == "b") + 10 * rows + torch.arange(size) for key, size in UNITS.items()}


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_rows_come_back_in_the_order_of_the_sentences(kind: str, tmp_path: Path) -> None:
    kept = MemoryStore(5) if kind == "memory" else FileStore(tmp_path, UNITS, 5)
    assert kept.missing(BATCHES) == [0, 1, 2]
    for number, batch in enumerate(BATCHES):
        kept.add(number, batch, pooled(batch))
    kept.close()
    for key, values in pooled([0, 1, 2, 3, 4]).items():
        assert torch.equal(kept.read(key), values)
        assert kept.read(key).dtype == torch.float32


def test_another_process_goes_on(tmp_path: Path) -> None:
    first = FileStore(tmp_path, UNITS, 5)
    first.add(1, BATCHES[1], pooled(BATCHES[1]))
    first.close()
    first.add(0, BATCHES[0], pooled(BATCHES[0]))  # not saved
    second = FileStore(tmp_path, UNITS, 5, rank=1)
    assert second.missing(BATCHES) == [0, 2]
    for number in (0, 2):
        second.add(number, BATCHES[number], pooled(BATCHES[number]))
    second.close()
    third = FileStore(tmp_path, UNITS, 5)
    assert third.missing(BATCHES) == []
    assert all(torch.equal(third.read(key), values) for key, values in pooled([0, 1, 2, 3, 4]).items())


def test_saves_are_made_in_between(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "SECONDS_BETWEEN_SAVES", 0.0)
    FileStore(tmp_path, UNITS, 5).add(2, BATCHES[2], pooled(BATCHES[2]))
    assert FileStore(tmp_path, UNITS, 5).missing(BATCHES) == [0, 1]


def test_half_a_line_of_a_killed_process_is_no_batch(tmp_path: Path) -> None:
    FileStore(tmp_path, UNITS, 5)
    (tmp_path / "finished.3").write_text("1\n2")
    assert FileStore(tmp_path, UNITS, 5).missing(BATCHES) == [0, 2]


def test_full_disk_is_refused_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(*args: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(arrays.os, "posix_fallocate", no_room)
    with pytest.raises(UserError, match=r"cannot hold a file of [\d,]+ bytes \(No space left on device\)"):
        FileStore(tmp_path, UNITS, 5)
    assert [path.name for path in tmp_path.iterdir()] == ["layout.json"]


def test_arena_is_one_file_of_the_size_of_its_arrays(tmp_path: Path) -> None:
    shapes = {(0, "a"): (2, 3), (5, "b"): (1, 4)}
    arena = arrays.Arena(tmp_path / "x", shapes, np.float64)
    arena[5, "b"][:] = 7
    assert (tmp_path / "x").stat().st_size == 8 * 10
    assert {key: array.shape for key, array in arrays.Arena(tmp_path / "x", shapes, np.float64).items()} == shapes
    assert (arrays.Arena(tmp_path / "x", shapes, np.float64)[5, "b"] == 7).all()
    assert (arrays.Arena(tmp_path / "x", {(0, "a"): (3, 5)}, np.float64)[0, "a"] == 0).all()


def test_other_modules_start_anew(tmp_path: Path) -> None:
    first = FileStore(tmp_path, UNITS, 5)
    first.add(0, BATCHES[0], pooled(BATCHES[0]))
    first.close()
    assert FileStore(tmp_path, UNITS, 5).missing(BATCHES) == [1, 2]
    assert FileStore(tmp_path, {**UNITS, (1, "c"): 2}, 5).missing(BATCHES) == [0, 1, 2]
