"""The tokenizer that a spec names: its file, which the workers count tokens with, and how it fits what was drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuronmoe_plugins.data.workspace import Workspace
from neuronmoe_plugins.data.writing import WriteJob, sample_texts
from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.files import write_text
from neuronmoe_plugins.tokenizer_fit import MOST_TEXTS, TokenizerFit


@dataclass(frozen=True)
class CountingTokenizer:
    """A model's tokenizer.

    Attributes:
        name: Folder or hub name of the model.
        path: Its file, so that the workers need not load all of transformers.
        loaded: As transformers has it.
    """

    name: str
    path: Path
    loaded: Any

    @classmethod
    def load(cls, name: str, workspace: Workspace) -> CountingTokenizer:
        """Load it and save its file; raises `UserError` if it cannot be had or has no fast version."""
        from neuronmoe_plugins.neurons.loading import load_tokenizer

        loaded = load_tokenizer(name, "tokenizer:")
        backend = getattr(loaded, "backend_tokenizer", None)
        if backend is None:
            raise UserError(f"tokenizer {name} has no fast version, which counting tokens needs; name a model with one")
        path = workspace.folder("tokenizer", name) / "tokenizer.json"
        write_text(path, backend.to_str())  # unlike its own `save`, whole, and with errors of the disk
        return cls(name, path, loaded)

    def fit(self, dataset: str, jobs: Sequence[WriteJob]) -> dict[str, Any]:
        """How it fits what was written of a data set, for the manifest.

        Raises:
            UserError: if it does not.
        """
        fit = TokenizerFit.of(self.loaded, sample_texts(jobs, MOST_TEXTS))
        fit.require(f"tokenizer {self.name}", dataset)
        return fit.record()


def tokenizer_fits(manifest: Mapping[str, Any]) -> dict[str, TokenizerFit]:
    """Data set -> how the tokenizer fits it, of those of which the manifest says it."""
    told = {entry["name"]: entry.get("tokenizer") for entry in manifest["datasets"]}
    return {name: TokenizerFit.load(fit) for name, fit in told.items() if fit}
