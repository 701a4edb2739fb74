"""What this package registers of its own, by the hooks that every plugin has; each imports its things when asked."""

from __future__ import annotations

from neuronmoe_plugins.hookspecs import Register, hookimpl


@hookimpl
def register_metrics(register: Register) -> None:
    from neuronmoe_plugins.neurons.lape import LAPE
    from neuronmoe_plugins.neurons.metrics import ATTRIBUTION, AVERAGE_PRECISION

    register("ap", AVERAGE_PRECISION)
    register("attribution", ATTRIBUTION)
    register("lape", LAPE)


@hookimpl
def register_allocation_strategies(register: Register) -> None:
    from neuronmoe_plugins.allocation.strategies import BUILT_IN

    for name, strategy in BUILT_IN.items():
        register(name, strategy)


@hookimpl
def register_feed_forward_families(register: Register) -> None:
    from neuronmoe_plugins.feed_forward import family

    register("gated", family.GATED)
    register("fused-gated", family.FUSED_GATED)
    register("gpt-neox", family.GPT_NEOX)
    register("phi", family.PHI)


@hookimpl
def register_commands(register: Register) -> None:
    """In the order of `neuronmoe --help`, which is that of the work."""
    from neuronmoe_plugins.cli.adapters import compress, export, graft, prune
    from neuronmoe_plugins.cli.neurons import analyze, specialise
    from neuronmoe_plugins.cli.results import compare, demo, doctor, paths, plugins, report, study
    from neuronmoe_plugins.cli.training import allocate, convert, data, recipe, vocabulary

    on_the_way = (data, vocabulary, analyze, allocate, recipe, specialise, prune, compress, graft)
    for command in (*on_the_way, compare, report, study, export, convert, demo, paths, plugins, doctor):
        register(command.__name__, command)


@hookimpl
def register_report_sections(register: Register) -> None:
    from neuronmoe_plugins.report.page import SECTIONS

    for name, make_section in SECTIONS.items():
        register(name, make_section)
