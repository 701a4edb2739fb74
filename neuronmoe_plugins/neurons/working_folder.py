"""The folder of an unfinished analysis: what it holds is used again only by the same analysis."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.files import locked, stamp, write_json

# Other versions of these may compute other activations.
PACKAGES = ("neuronmoe-plugins", "torch", "transformers", "accelerate", "peft", "numpy")


class WorkingFolder:
    """A hidden folder beside an analysis' output, or in it where that is a folder already, perhaps on another disk.

    Args:
        output: Where the analysis will be.
    """

    def __init__(self, output: Path) -> None:
        self.path = output / ".partial" if output.is_dir() else output.with_name(f".{output.name}.partial")
        self._made_here = False

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other analyses away from this output.

        Raises:
            UserError: if there is one, or the output cannot be written.
        """
        with locked(self.path.with_name(f"{self.path.name}.lock"), self.path.parent, "analysis"):
            yield

    @contextmanager
    def kept_if_interrupted(self, announce: bool) -> Iterator[None]:
        """Lock the folder, and remove it at the end, but not if another call could go on from it.

        Args:
            announce: Say so on standard error if the user interrupts.

        Raises:
            UserError: as `locked` does.
        """
        with self.locked():
            try:
                yield
            except UserError as error:
                self.remove_after(error)
                raise
            except KeyboardInterrupt:
                if announce and self.has_results:
                    message = f"Interrupted: the same command goes on from {self.path}"
                    Console(stderr=True).print(message, soft_wrap=True, highlight=False)
                raise
            self.remove()

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
                self.path.mkdir()
                self._made_here = True
                write_json(self.path / "plan.json", plan)
        except OSError as error:
            raise UserError(f"--output {self.path.parent} cannot be written: {error.strerror}") from error

    def _plan(self) -> Any:
        try:
            return json.loads((self.path / "plan.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    @property
    def has_results(self) -> bool:
        """Whether another call could go on from it."""
        return any(self.path.glob("finished.*"))

    def remove_after(self, error: UserError) -> None:
        """Delete what the same input would only run into again; keep work that a full disk or memory ended."""
        if self._made_here and not (self.has_results and isinstance(error.__cause__, (OSError, RuntimeError))):
            self.remove()

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.path, ignore_errors=True)


def describe_files(folder: str | None) -> dict[str, list[int]]:
    """Size and modification time of the files of a local model or adapter; empty for a name on the hub, or None."""
    if folder is None or not Path(folder).is_dir():
        return {}
    return {path.name: stamp(path) for path in sorted(Path(folder).iterdir()) if path.is_file()}
