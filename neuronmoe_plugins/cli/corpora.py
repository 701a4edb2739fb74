"""Which corpora a command line names: one by one with `--corpus`, or all of a folder with `--data`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from neuronmoe_plugins.errors import UserError

if TYPE_CHECKING:
    from neuronmoe_plugins.corpora import CorpusSpec

DATA_HELP = "Instead: a folder of `neuronmoe data`, whose data sets of role analysis are the corpora."


def chosen_corpora(
    corpus: Sequence[str] | None, data: Path | None, text_field: str | None, concepts: Path | None = None
) -> tuple[CorpusSpec, ...]:
    """The corpora of `--corpus` or `--data`; none if neither is given.

    Raises:
        UserError: if both are, `--data` goes with an option that would have no effect, or they cannot be used.
    """
    if data is None:
        from neuronmoe_plugins.corpora import parse_corpus_specs

        return parse_corpus_specs(corpus) if corpus else ()
    for option, value in (("--corpus", corpus), ("--concepts", concepts)):
        if value:
            raise UserError(f"--data {data} and {option} both say what to analyse; leave one out")
    if text_field is not None:
        raise UserError("--text-field has no effect with --data, whose texts are in the field text; leave it out")
    from neuronmoe_plugins.data.manifest import analysis_corpora

    return analysis_corpora(data)
