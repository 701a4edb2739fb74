"""Keeps what was streamed from a data set of the hub, so that a stopped run goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from neuronmoe_plugins.corpora import HubDataset
from neuronmoe_plugins.corpora.texts import import_datasets, list_fields
from neuronmoe_plugins.data.shards import Shard
from neuronmoe_plugins.errors import UserError, one_line
from neuronmoe_plugins.files import write_json, write_text

FIELD = "text"
"""Of the texts in the chunks, whatever it is called on the hub."""
CHUNK_ROWS = 2048
CHUNK_BYTES = 64 << 20
ZSTD_ADVICE = "pip install 'neuronmoe-plugins[data]'"


class HubRows:
    """The texts of a data set's rows in their order, a chunk of rows a file.

    Args:
        dataset: Which rows.
        revision: Commit, branch or tag.
        text: Field of the texts.
        folder: Where the chunks are kept: `rows-N.jsonl` and, last, `rows-N.json`.
        count: Told how many rows came.
    """

    def __init__(
        self, dataset: HubDataset, revision: str | None, text: str, folder: Path, count: Callable[[int], None]
    ) -> None:
        self._dataset, self._revision, self._text = dataset, revision, text
        self._folder, self._count = folder, count
        self._stream: Any = None
        self._rows: Iterator[dict[str, Any]] = iter(())

    def chunks(self) -> Iterator[Shard]:
        """A shard for every chunk, those that are kept first; others are streamed as they are asked for.

        Raises:
            UserError: if the data set cannot be read; what came is kept.
        """
        position: dict[str, Any] = {"rows": 0, "state": None, "end": False}
        for number in range(2**32):
            path = self._folder / f"rows-{number:06}.jsonl"
            done = path.with_suffix(".json")
            if not done.exists():
                if position["end"]:
                    return
                self._fetch(position, path, done)
            position = json.loads(done.read_text(encoding="utf-8"))
            size = path.stat().st_size
            if size:
                yield Shard(str(path), ".jsonl", 0, size, size)

    def _fetch(self, position: dict[str, Any], path: Path, done: Path) -> None:
        """Stream the next chunk."""
        try:
            if self._stream is None:
                self._open(position["state"])
            lines, limit = [], self._dataset.rows
            left = CHUNK_ROWS if limit is None else min(CHUNK_ROWS, limit - position["rows"])
            size = 0
            for record in islice(self._rows, left):
                lines.append(self._line(record))
                size += len(lines[-1])
                if size >= CHUNK_BYTES:
                    break
            state = self._stream.state_dict()
        except UserError:
            raise
        except Exception as error:  # the hub, the network and every file format have errors of their own
            advice = f"{ZSTD_ADVICE}; then " if "zstd not supported" in str(error) else ""
            raise UserError(
                f"{self._dataset} cannot be read beyond row {position['rows']}: {one_line(error)}; {advice}the same "
                "command goes on from there"
            ) from error
        rows = position["rows"] + len(lines)
        write_text(path, "".join(lines))
        ended = size < CHUNK_BYTES and len(lines) < left
        write_json(done, {"rows": rows, "state": state, "end": ended or rows == limit})
        self._count(len(lines))

    def _open(self, state: object) -> None:
        datasets = import_datasets(self._dataset)
        name, config, split = self._dataset.name, self._dataset.config, self._dataset.split
        self._stream = datasets.load_dataset(name, config, split=split, revision=self._revision, streaming=True)
        if state is not None:
            self._stream.load_state_dict(state)
        self._rows = iter(self._stream)

    def _line(self, record: dict[str, Any]) -> str:
        """A row's text in the field `FIELD`, as JSON that is ASCII, so that even a lone surrogate is kept."""
        if self._text not in record:
            raise UserError(
                f"{self._dataset}: no field {self._text!r}; there are: {list_fields(record)}; name it by `text:`"
            )
        value = record[self._text]
        return json.dumps({FIELD: value if isinstance(value, str) else None}) + "\n"
