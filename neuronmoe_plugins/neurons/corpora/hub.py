"""Streams texts from a data set of the Hugging Face Hub; nothing is downloaded beyond what is read."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.neurons.corpora.lines import Digest
from neuronmoe_plugins.neurons.corpora.records import Sentence, one_line, text_field
from neuronmoe_plugins.neurons.corpora.sources import HubDataset

OLDEST_DATASETS = 4
"""Earlier releases of `datasets` can run a data set's own code."""


def read_hub(dataset: HubDataset, field: str, digest: Digest) -> Iterator[Sentence]:
    """The text field of every row, in the data set's order; the digest takes each text and a line break.

    Raises `UserError` if `datasets` is missing or the data set, its configuration, its split or the field is.
    """
    for number, record in enumerate(_records(dataset), start=1):
        name = f"{dataset}:row {number}"
        text = text_field(record, field, name)
        digest(text.encode())
        digest(b"\n")
        yield Sentence(text, name)


def _records(dataset: HubDataset) -> Iterator[dict[str, Any]]:
    datasets = import_datasets(dataset)
    try:
        stream = datasets.load_dataset(dataset.name, dataset.config, split=dataset.split, streaming=True)
        yield from islice(stream, dataset.rows)
    except Exception as error:  # the hub, the network and every file format have errors of their own
        raise UserError(f"{dataset} cannot be read: {one_line(error)}") from error


def import_datasets(dataset: HubDataset) -> Any:
    advice = f"pip install 'datasets>={OLDEST_DATASETS}'"
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise UserError(f"{dataset} needs the package datasets: {advice}") from error
    if int(datasets.__version__.split(".")[0]) < OLDEST_DATASETS:
        raise UserError(f"datasets {datasets.__version__} can run code of a data set; for {dataset}: {advice}")
    return datasets
