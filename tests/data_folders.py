"""Folders of data sets as `neuronmoe data` writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Entry = tuple[str, str, Sequence[str]]


def save_data(folder: Path, datasets: Mapping[str, Entry], parquet: bool = False, tokens: Any = None) -> Path:
    """Write a folder of data sets.

    Args:
        folder: To write into; made if it is not there.
        datasets: Name -> language, role and texts.
        parquet: Write folders of two Parquet files each instead of JSON lines.
        tokens: What the manifest says of every data set's tokens; nothing if None.
    """
    folder.mkdir(parents=True, exist_ok=True)
    info: dict[str, Any] = {}
    entries = []
    for name, (language, role, texts) in datasets.items():
        file_name = name if parquet else f"{name}.jsonl"
        if parquet:
            (folder / name).mkdir()
            for shard, part in enumerate((texts[::2], texts[1::2])):
                pq.write_table(pa.table({"text": pa.array(part, pa.string())}), folder / name / f"{shard}.parquet")
        else:
            lines = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
            (folder / file_name).write_text("".join(lines), encoding="utf-8")
        info[name] = {"file_name": file_name, "columns": {"prompt": "text"}, "language": language}
        entries.append({"name": name, "language": language, "role": role, "file_name": file_name})
        entries[-1]["documents"] = len(texts)
        entries[-1] |= {} if tokens is None else {"tokens": tokens}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    (folder / "manifest.json").write_text(json.dumps({"format": 1, "seed": 22, "datasets": entries}))
    return folder
