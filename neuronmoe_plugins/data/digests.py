"""SHA-256 of files, as sha256sum prints it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuronmoe_plugins.data.workers import report
from neuronmoe_plugins.files import sha256_of, write_json


@dataclass(frozen=True)
class DigestJob:
    """A file whose digest is wanted.

    Attributes:
        path: The file's.
        stem: Where to write: `STEM.json`.
    """

    path: str
    stem: str

    @property
    def done(self) -> Path:
        """The file that is there when the job is done."""
        return Path(f"{self.stem}.json")

    def result(self) -> dict[str, Any]:
        """`bytes` and `sha256`."""
        return dict(json.loads(self.done.read_text(encoding="utf-8")))


def digest_file(job: DigestJob) -> None:
    """Write size and digest of a file."""
    path = Path(job.path)
    write_json(job.done, {"bytes": path.stat().st_size, "sha256": sha256_of([path], report)})
