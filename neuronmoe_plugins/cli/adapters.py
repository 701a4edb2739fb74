"""What is made of trained adapters: smaller ones, whole models (`export`), ones on other bases (`graft`)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from neuronmoe_plugins.cli.neurons import chosen_corpora
from neuronmoe_plugins.cli.options import takes
from neuronmoe_plugins.cli.output import is_quiet, note, warn
from neuronmoe_plugins.compression import CompressRequest
from neuronmoe_plugins.export.request import ExportRequest, GraftRequest
from neuronmoe_plugins.pruning.options import PruneOptions

DATA_HELP = "Instead: a folder of `neuronmoe data`, whose texts of role held-out, or else analysis, are taken."


def chosen_texts(
    corpus: list[str] | None,
    data: Annotated[Path | None, typer.Option(help=DATA_HELP)] = None,
    text_field: str | None = None,
) -> tuple[Any, ...]:
    """As :func:`chosen_corpora`, but of a folder with `--data` what no training sees."""
    from neuronmoe_plugins.data.manifest import unseen_corpora

    return chosen_corpora(corpus, data, text_field, of_folder=unseen_corpora)


@takes(PruneOptions, corpora=chosen_texts)
def prune(options: PruneOptions) -> None:
    """Drop the experts of an adapter that hardly anything needs, within a bound on the loss."""
    from rich.console import Console

    from neuronmoe_plugins.neurons.analysis import corpus_warnings
    from neuronmoe_plugins.pruning.display import layers_table, losses_table, summary
    from neuronmoe_plugins.pruning.prune import prune as prune_adapter
    from neuronmoe_plugins.pruning.record import RECORD
    from neuronmoe_plugins.tables import print_table

    pruning = prune_adapter(options, progress=not is_quiet())
    warn(corpus_warnings(pruning.settings))
    console = Console()
    for table in (layers_table(pruning), losses_table(pruning)):
        print_table(console, table, str(options.output / RECORD))
    typer.echo(summary(pruning))
    note(f"Wrote {options.output}")


@takes(CompressRequest)
def compress(request: CompressRequest) -> None:
    """Rewrite an adapter with experts of low rank, the nearest to its own."""
    from rich.console import Console

    from neuronmoe_plugins.compression.compress import compress as compress_adapter
    from neuronmoe_plugins.compression.display import summary, tables
    from neuronmoe_plugins.compression.record import RECORD
    from neuronmoe_plugins.neurons.analysis import corpus_warnings
    from neuronmoe_plugins.tables import print_table

    compression = compress_adapter(request, progress=not is_quiet())
    if compression.texts:
        warn(corpus_warnings(dict(compression.texts)))
    for table in tables(compression):
        print_table(Console(), table, str(request.output / RECORD))
    typer.echo(summary(compression))
    note(f"Wrote {request.output}")


@takes(ExportRequest)
def export(request: ExportRequest) -> None:
    """Write a trained adapter and its base as one checkpoint that runs without this package."""
    from neuronmoe_plugins.export.export import export as export_adapter

    exported = export_adapter(request, progress=not is_quiet())
    warn(exported.warnings())
    typer.echo(f"{exported.model_type}: {exported.parameters}")
    typer.echo(
        exported.comparison
        or "Its logits were not compared with the adapter's: llama.cpp, which runs it, was not asked"
    )
    note(f"Wrote {request.output}")


@takes(GraftRequest)
def graft(request: GraftRequest) -> None:
    """Put an adapter on a model that was tuned from its base, such as the chat version."""
    from neuronmoe_plugins.export.graft import graft as graft_adapter

    grafted = graft_adapter(request, progress=not is_quiet())
    how = "as deltas stay as they are" if grafted.is_low_rank else "got the difference of the two models' MLPs"
    note(f"Wrote {request.output}: its {grafted.experts} experts {how}")
