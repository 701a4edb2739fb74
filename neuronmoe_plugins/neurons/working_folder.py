"""The folder of an unfinished analysis: what it holds is used again only by the same analysis."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.files import write_json

# Other versions of these may compute other activations.
PACKAGES = ("neuronmoe-plugins", "torch", "transformers", "peft")


class WorkingFolder:
    """A hidden neighbour of an analysis' output.

    Args:
        output: Where the analysis will be.
    """

    def __init__(self, output: Path) -> None:
        self.path = output.with_name(f".{output.name}.partial")

    def prepare(self, settings: Mapping[str, Any]) -> None:
        """Make the folder, or keep it if it is there from an interrupted analysis with the same settings.

        Args:
            settings: JSON values on which the activations depend.

        Raises:
            UserError: if it cannot be written.
        """
        plan = {**settings, "versions": {name: version(name) for name in PACKAGES}}
        try:
            if self._plan() != json.loads(json.dumps(plan)):
                shutil.rmtree(self.path, ignore_errors=True)
                self.path.mkdir(parents=True)
                write_json(self.path / "plan.json", plan)
        except OSError as error:
            raise UserError(f"--output {self.path.parent} cannot be written: {error.strerror}") from error

    def _plan(self) -> Any:
        try:
            return json.loads((self.path / "plan.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.path, ignore_errors=True)


def describe_model_files(name: str) -> dict[str, list[int]]:
    """Size and modification time of the files of a local model or adapter; empty for a name on the hub."""
    folder = Path(name)
    if not folder.is_dir():
        return {}
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in files}


def digest(value: Any) -> str:
    """SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
