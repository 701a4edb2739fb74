"""Specs, sources and runs of `neuronmoe data` in small."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from neuronmoe_plugins.cli import main
from neuronmoe_plugins.data.prepare import Prepared, prepare_data

ENVIRONMENT = os.environ | {"COLUMNS": "200", "NO_COLOR": "1"}
# As the installed command, whatever is on the path.
COMMAND = [sys.executable, "-c", "from neuronmoe_plugins.cli import main; main()", "data"]
_SMALL_SHARDS = (
    "from neuronmoe_plugins.data import shards; shards.cut_file.__defaults__ = (20_000,); "
    "from neuronmoe_plugins.cli import main; main()"
)
SMALL_SHARDS_COMMAND = [sys.executable, "-c", _SMALL_SHARDS, "data"]


def write_jsonl(path: Path, texts: Iterable[object], field: str = "text") -> Path:
    """Write objects with one more field than the texts need, as corpora have."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps({"id": n, field: text}, ensure_ascii=False) for n, text in enumerate(texts))
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def write_spec(path: Path, given: Sequence[dict[str, Any]], **top: Any) -> Path:
    """Write a spec; what a data set lacks is that of Greek training text in `el.jsonl`."""
    entries = [{"name": "el_train", "language": "el", "role": "target", "source": "el.jsonl", **d} for d in given]
    path.write_text(yaml.safe_dump({"seed": 22, "datasets": entries, **top}, allow_unicode=True), encoding="utf-8")
    return path


def prepare(spec: Path, output: Path, workers: int = 1, force: bool = False) -> Prepared:
    """Run it, and show no progress."""
    return prepare_data(spec, output, workers, force, Console(file=io.StringIO()))


def texts_of(output: Path, name: str = "el_train") -> list[str]:
    """The texts of a data set that was written."""
    lines = (output / f"{name}.jsonl").read_text(encoding="utf-8").split("\n")
    assert lines.pop() == ""
    records = [json.loads(line) for line in lines]
    assert all(list(record) == ["text"] for record in records)
    return [record["text"] for record in records]


def entry_of(prepared: Prepared, name: str = "el_train") -> dict[str, Any]:
    """What the manifest says of a data set."""
    entries = [*prepared.manifest["datasets"], *prepared.manifest["without_documents"]]
    return next(entry for entry in entries if entry["name"] == name)


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=120)


def run_here(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command in this process, which is spared the imports."""
    words, out, err = ["neuronmoe", "data", *map(str, arguments)], io.StringIO(), io.StringIO()
    code: Any = 0
    before, sys.argv = sys.argv, words
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as end:
        code = end.code or 0
    finally:
        sys.argv = before
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


def contents(folder: Path) -> dict[str, bytes]:
    """Name -> bytes of every file of a folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}
