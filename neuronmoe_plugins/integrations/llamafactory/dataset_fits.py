"""How the tokenizer of a run fits its data sets: measured on some examples, logged, and kept beside the adapter."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

from datasets import Dataset
from llamafactory.extras import logging

from neuronmoe_plugins.files import write_json
from neuronmoe_plugins.tokenizer_fit import MOST_TEXTS, TokenizerFit

FILE = "tokenizer_fit.json"

logger = logging.get_logger("llamafactory.neuronmoe")


class DatasetFits:
    """Measures the data sets of a run.

    Args:
        tokenizer: The run's.
        model: Where it is from.
    """

    def __init__(self, tokenizer: Any, model: str) -> None:
        self._tokenizer, self._model = tokenizer, f"model_name_or_path: {model}"
        self._fits: dict[str, TokenizerFit] = {}

    def measure(self, name: str, dataset: Any) -> None:
        """Measure a data set as the host has loaded it, and log what was found.

        Raises:
            UserError: if the tokenizer does not fit it.
        """
        if name in self._fits:
            return
        if isinstance(dataset, Dataset):
            step = max(1, len(dataset) // MOST_TEXTS)
            dataset = dataset.select(range(0, len(dataset), step))
        texts = [text for example in islice(dataset, MOST_TEXTS) for text in _texts_of(example)]
        fit = TokenizerFit.of(self._tokenizer, texts)
        self._fits[name] = fit
        fit.require(self._model, name)
        logger.info_rank0(f"{name}: {fit.words_and_bytes()}")
        if warning := fit.warning(self._model, name):
            logger.warning_rank0(warning)

    def save(self, folder: Path) -> None:
        """Write what was measured, if anything was."""
        if self._fits:
            write_json(folder / FILE, {name: fit.record() for name, fit in self._fits.items()})


def _texts_of(example: dict[str, Any]) -> list[str]:
    """All that is said in an example."""
    messages = [*(example["_prompt"] or []), *(example["_response"] or [])]
    return [message["content"] for message in messages if message["content"]]
