"""The report: one page that needs nothing but itself, and its figures as files: `neuronmoe report`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from neuronmoe_plugins.figures import house_style, save_png, svg_text
from neuronmoe_plugins.files import writable_file, write_text, writing
from neuronmoe_plugins.plugins import registered
from neuronmoe_plugins.report.allocation_section import experts_section, main_allocation
from neuronmoe_plugins.report.analysis_sections import (
    provenance_section,
    scores_section,
    similarity_section,
    top_section,
)
from neuronmoe_plugins.report.neuron_sections import components_section, layers_section, overlap_section
from neuronmoe_plugins.report.parts import MakeSection, Section, inline_svg
from neuronmoe_plugins.report.pruning_section import pruning_section
from neuronmoe_plugins.report.run import Run, read_run
from neuronmoe_plugins.report.specialisation_sections import routing_section, specialisation_section
from neuronmoe_plugins.tables import count

# Those of this package, by their anchors, in the order of the page.
SECTIONS: dict[str, MakeSection] = {
    "layers": layers_section,
    "allocation": experts_section,
    "specialisation": specialisation_section,
    "routing": routing_section,
    "pruning": pruning_section,
    "overlap": overlap_section,
    "scores": scores_section,
    "components": components_section,
    "similarity": similarity_section,
    "top": top_section,
    "run": provenance_section,
}


def write_report(folder: Path, output: Path | None = None, layermoe_budget: int | None = None) -> list[Path]:
    """Write `report.html` and, beside it, `figures/*.png` and `figures/*.svg`; each replaces an older one in one go.

    Args:
        folder: what `neuronmoe analyze` wrote, or the folder in which that is called `analysis`, with allocations as
            `*.yaml`, what `neuronmoe specialise` wrote as `specialisation`, and pruned adapters.
        output: the page; `folder`/report.html if not given.
        layermoe_budget: also compute the experts of LayerMoE, from this budget, and compare with them.

    Returns:
        what was written, the page first.

    Raises:
        UserError: there is no complete analysis, an allocation or specialisation does not fit it, a plugin cannot be
            loaded, or the output cannot be written.
    """
    page = output or folder / "report.html"
    writable_file("--output", page)
    run = replace(read_run(folder), layermoe_budget=layermoe_budget)
    languages = ", ".join(run.languages)
    head = Head(
        title=_title(run),
        subject="language-specific neurons",
        about=f"Language-specific neurons of {languages}, and the experts that follow from them",
        facts=_facts(run),
    )
    with house_style():
        made = {name: make_section(run) for name, make_section in registered("report section").items()}
        return write_page(page, head, {name: section for name, section in made.items() if section is not None})


@dataclass(frozen=True)
class Head:
    """What a page begins with.

    Attributes:
        title: Of the page.
        subject: What it is about, in few words.
        about: The same in a sentence.
        facts: Large numbers, each with what it counts.
    """

    title: str
    subject: str
    about: str
    facts: Sequence[tuple[str, str]]


def write_page(page: Path, head: Head, sections: Mapping[str, Section]) -> list[Path]:
    """Write a page and, beside it, its figures; in the house's style, which the caller sets.

    Returns:
        What was written, the page first.

    Raises:
        UserError: if it cannot be written.
    """
    figures = {name: own.picture.figure for name, own in sections.items() if own.picture}
    drawings = {name: svg_text(figure, name) for name, figure in figures.items()}
    html = render(head, sections, drawings)
    written = [page]
    with writing(f"--output {page}"):
        for name, figure in figures.items():
            png, svg = (page.parent / "figures" / f"{name}{suffix}" for suffix in (".png", ".svg"))
            save_png(figure, png)
            write_text(svg, drawings[name])
            written += [png, svg]
        write_text(page, html)
    return written


def render(head: Head, sections: Mapping[str, Section], drawings: Mapping[str, str]) -> str:
    """The page as HTML; all that comes from data is escaped.

    Args:
        head: What the page begins with.
        sections: its parts by their anchors, in order.
        drawings: for each section with a picture, by name, the picture as an SVG document.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("neuronmoe_plugins.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pictures = {name: section.picture for name, section in sections.items() if section.picture}
    return environment.get_template("report.html.jinja").render(
        title=head.title,
        subject=head.subject,
        about=head.about,
        facts=head.facts,
        sections=sections,
        drawings={name: Markup(inline_svg(drawings[name], name, own.alt)) for name, own in pictures.items()},
        version=version("neuronmoe-plugins"),
    )


def _title(run: Run) -> str:
    """The model, with its adapter if it has one."""
    parts = [run.summary.get("model"), run.summary.get("adapter")]
    return " + ".join(Path(str(part)).name for part in parts if part is not None) or run.home.name


def _facts(run: Run) -> list[tuple[str, str]]:
    """Large numbers for the top of the page, each with what it counts."""
    distinct = len({(neuron.layer, neuron.module, neuron.unit) for neuron in run.neurons})
    facts = [
        (count(len(run.languages)), "languages"),
        (count(run.num_layers), "decoder layers"),
        (count(distinct), "language-specific neurons"),
    ]
    name = main_allocation(run)
    if name is not None:
        facts.append((count(run.allocations[name].new_experts), "new experts"))
    return facts
