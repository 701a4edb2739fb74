"""The command that decides how many experts each layer gets: `allocate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from neuronmoe_plugins.allocation.experts import Rounding
from neuronmoe_plugins.allocation.options import (
    COMBINE_HELP,
    MAX_EXPERTS_HELP,
    SCALE_HELP,
    STRATEGY_HELP,
    AllocationRequest,
    Combine,
)
from neuronmoe_plugins.allocation.scale import Scale


def allocate(
    origin: Annotated[Path, typer.Argument(metavar="DIR_OR_SCORES", help="An analysis folder or a scores file.")],
    output: Annotated[Path, typer.Option(help="The allocation.yaml to write.")],
    source: Annotated[str | None, typer.Option(help="Language the model knows.")] = None,
    target: Annotated[list[str] | None, typer.Option(help="Language to learn; may be repeated.")] = None,
    strategy: Annotated[str, typer.Option(help=STRATEGY_HELP)] = "neuron-diversity",
    combine: Annotated[Combine | None, typer.Option(help=COMBINE_HELP)] = None,
    scale: Annotated[Scale | None, typer.Option(help=SCALE_HELP)] = None,
    rounding: Annotated[Rounding | None, typer.Option(help="floor, the default, gives the paper's lists.")] = None,
    min_experts: Annotated[int | None, typer.Option(help="Least experts of a layer, the base MLP included: 1.")] = None,
    max_experts: Annotated[int | None, typer.Option(help=MAX_EXPERTS_HELP)] = None,
    budget: Annotated[int | None, typer.Option(help="For layer-similarity: what is shared out and rounded up.")] = None,
    total_experts: Annotated[int | None, typer.Option(help="Exactly so many in all, base MLPs included.")] = None,
    max_added_parameters: Annotated[int | None, typer.Option(help="As many experts as fit into these.")] = None,
    compare: Annotated[Path | None, typer.Option(help="Another allocation.yaml to set against this one.")] = None,
    figure: Annotated[Path | None, typer.Option(help="Also draw it, and what it is compared with, into a PNG.")] = None,
) -> None:
    """Decide how many experts each layer gets."""
    from rich.console import Console

    from neuronmoe_plugins.allocation.allocate import allocate as allocate_experts
    from neuronmoe_plugins.allocation.comparison import load_comparable
    from neuronmoe_plugins.allocation.display import print_allocation
    from neuronmoe_plugins.allocation.figure import save_allocation_figure

    targets, bounds = tuple(target or ()), (min_experts, max_experts)
    request = AllocationRequest(
        origin, source, targets, *bounds, rounding, scale, combine, budget, total_experts, max_added_parameters
    )
    allocation = allocate_experts(request, strategy)
    other = None if compare is None else load_comparable(compare, allocation)
    allocation.save(output)
    if figure is not None:
        save_allocation_figure(figure, allocation, other)
    print_allocation(Console(), allocation, other)
    typer.echo(f"Wrote {output}: {allocation.total_experts} experts in {len(allocation.num_experts)} layers")
