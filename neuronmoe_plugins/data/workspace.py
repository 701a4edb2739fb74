"""The hidden folder of an unfinished `neuronmoe data`: every part of it is used again by whatever needs the same."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from neuronmoe_plugins.files import digest, locked

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
            self._clear_unfinished_files()
            yield

    def folder(self, kind: str, needs: object) -> Path:
        """The folder of what depends on nothing but `needs` (JSON values); made if it is not there."""
        path = self.path / f"{kind}-{digest(needs)[:16]}"
        path.mkdir(parents=True, exist_ok=True)
        return path

    def remove(self) -> None:
        """Delete it all."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _clear_unfinished_files(self) -> None:
        for path in self.path.rglob(".*.partial"):
            path.unlink(missing_ok=True)
