"""A study's page: the verdicts, what is gained and lost for how many parameters, and the table of the arms."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from neuronmoe_plugins.comparison.bootstrap import Bootstrap
from neuronmoe_plugins.figures import INK, MARKERS, PALETTE, house_style, new_figure
from neuronmoe_plugins.report.page import Head, write_page
from neuronmoe_plugins.report.parts import Picture, Section
from neuronmoe_plugins.study.claims import (
    NEW,
    OLD,
    Verdict,
    compare,
    documents,
    judge,
    mean_of,
    means_of_seeds,
    summary,
    texts_of,
)
from neuronmoe_plugins.study.display import Row, table
from neuronmoe_plugins.study.results import sizes_of
from neuronmoe_plugins.study.runs import chosen_runs
from neuronmoe_plugins.study.trainings import Training
from neuronmoe_plugins.tables import Table, count

if TYPE_CHECKING:
    from matplotlib.axes import Axes

UNIT = "bits per byte"
PANELS = (("what is learned", None, NEW), ("what is kept", None, OLD), ("both", NEW, OLD))
"""Title, and what is drawn against what: None for added parameters."""


@dataclass(frozen=True)
class Measured:
    """One arm in one language after its last stage.

    Attributes:
        training: The arm and language.
        added: Its parameters beside the base model's; NaN where they are not known.
        means: `NEW` or `OLD` -> mean over texts and seeds.
        ends: The same -> the interval of its difference from the base model, beside that model's mean.
        seeds: The same -> the mean of every seed.
    """

    training: Training
    added: float
    means: Mapping[str, float]
    ends: Mapping[str, tuple[float, float]]
    seeds: Mapping[str, Sequence[float]]


def write_study_page(trainings: Sequence[Training], rows: Sequence[Row], page: Path) -> list[Path]:
    """Write the page and its figures; returns what was written, the page first.

    Args:
        trainings: All of a study's.
        rows: What was found by now.
        page: The file.

    Raises:
        UserError: if samples are damaged, or the page cannot be written.
    """
    bootstrap = Bootstrap()
    bases = {(each.arm.model, each.target.language): each for each in trainings if each.is_base}
    measured = [found for training in trainings if (found := _measure(training, bases, bootstrap)) is not None]
    verdicts = judge(trainings, bootstrap)
    spec = trainings[0].spec
    models = ", ".join(Path(base.model).name for base in spec.bases)
    head = Head(
        title=spec.path.stem,
        subject="a study",
        about=f"Arms that differ in one thing each, trained on {models} for {', '.join(spec.targets)}",
        facts=[
            (count(len({training.arm.name for training in trainings if not training.is_base})), "arms"),
            (count(len({(row["arm"], row["language"], row["seed"], row["learning_rate"]) for row in rows})), "runs"),
        ],
    )
    with house_style():
        sections = {"verdicts": _verdicts(verdicts)} if verdicts else {}
        for language in spec.targets:
            own = [each for each in measured if each.training.target.language == language]
            sections[f"curves-{language}"] = _curves(language, own)
        sections["arms"] = Section("All arms", tables=[table(rows)])
        return write_page(page, head, sections)


def _measure(training: Training, bases: Mapping[tuple[str, str], Training], bootstrap: Bootstrap) -> Measured | None:
    runs, base = chosen_runs(training), bases[training.arm.model, training.target.language]
    if not runs:
        return None
    stage, means, ends, seeds = runs[0].stages[-1], {}, {}, {}
    for of in (NEW, OLD):
        texts = texts_of(training, of)
        difference = compare(training, base, of, bootstrap) if texts else None
        if difference:
            values, test = documents(runs, texts, stage), difference.test
            means[of] = mean_of(values)
            of_base = means[of] - difference.value
            ends[of] = (of_base + test.low, of_base + test.high) if test else (means[of], means[of])
            seeds[of] = means_of_seeds(values)
    added = sizes_of(runs[0], stage)["added_parameters"]
    return Measured(training, math.nan if added is None else added, means, ends, seeds)


def _verdicts(verdicts: Sequence[Verdict]) -> Section:
    rows = []
    for each in verdicts:
        numbers = ["-"] * 5
        if found := each.difference:
            interval, p_value = "-", "-"
            if found.test:
                interval, p_value = f"{found.test.low:+.4f} to {found.test.high:+.4f}", f"{found.test.p_value:.4f}"
            sizes = [str(found.seeds), ", ".join(map(str, found.documents))]
            numbers = [f"{found.value:+.4f}", interval, p_value, *sizes]
        rows.append([each.claim.better, each.other, each.language, each.of, *numbers, each.words])
    header = ["arm", "against", "language", "texts", UNIT, "95 % interval", "p", "seeds", "documents"]
    caption = "Differences after the last stage, paired over documents and seeds; fewer bits are better"
    table = Table(caption, [*header, "that it is better"], rows, words=(0, 1, 2, 3, 9))
    return Section("Verdicts", notes=summary(verdicts), tables=[table])


def _curves(language: str, measured: Sequence[Measured]) -> Section:
    """Three panels: the new language and the old one against added parameters, and both against each other."""
    from matplotlib.ticker import EngFormatter

    figure = new_figure(13, 4.6)
    places = figure.subplots(1, 3)
    styles = _styles([each for each in measured if not each.training.is_base])
    for axes, (title, x, y) in zip(places, PANELS, strict=True):
        drawn = [each for each in measured if all(of is None or of in each.means for of in (x, y))]
        for family, style in styles.items():
            own = [each for each in drawn if each.training.arm.family == family]
            _draw(axes, sorted(own, key=lambda each: each.added), x, y, style, family)
        for base in [each for each in drawn if each.training.is_base and x is None]:
            # Beyond the others it would leave no room to tell them apart.
            low, high = axes.get_ylim()
            title += f"; {base.training.arm.name}: {base.means[y]:.3f}"
            if low < base.means[y] < high:
                axes.axhline(base.means[y], color=INK, linestyle="--", linewidth=1)
        axes.set(title=title, xlabel=f"{UNIT}, {x}" if x else "added parameters", ylabel=f"{UNIT}, {y}")
        axes.grid()
        if x is None:
            axes.xaxis.set_major_formatter(EngFormatter())
    handles, names = places[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=max(1, min(len(names), 6)))
    caption = (
        "Each point is an arm: the mean over texts and seeds after the last stage, with the 95 % interval, over "
        "documents and seeds, of its difference from the base model, which is the dashed line where it is not beyond "
        "the others; small points are single seeds. Fewer bits are better: down, and in the last panel left."
    )
    alt = f"Bits per byte of {len(measured)} arms against their added parameters, in {language} and the old language"
    return Section(f"{language}: what is learned, and what is kept", Picture(figure, caption, alt))


def _styles(arms: Sequence[Measured]) -> dict[str, tuple[str, str]]:
    """Family -> colour and marker, which another family of the same colour does not have."""
    families = list(dict.fromkeys(each.training.arm.family for each in arms))
    laps = [divmod(place, len(PALETTE)) for place in range(len(families))]
    pairs = [(PALETTE[place], MARKERS[(place + lap) % len(MARKERS)]) for lap, place in laps]
    return dict(zip(families, pairs, strict=True))


def _draw(axes: Axes, arms: Sequence[Measured], x: str | None, y: str, style: tuple[str, str], family: str) -> None:
    """One family's arms in one panel: against added parameters if `x` is None."""
    colour, marker = style
    across = [each.added if x is None else each.means[x] for each in arms]
    up = [each.means[y] for each in arms]
    for each, place in zip(arms, across, strict=True):
        seeds = [place] * len(each.seeds[y]) if x is None else each.seeds[x]
        axes.plot(seeds, each.seeds[y], linestyle="", marker=marker, markersize=3, color=colour, alpha=0.45)
        axes.plot([place, place], each.ends[y], linestyle="-", marker="", linewidth=1, color=colour)
        if x is not None:
            axes.plot(each.ends[x], [each.means[y]] * 2, linestyle="-", marker="", linewidth=1, color=colour)
    line = "-" if x is None and len(arms) > 1 else ""
    axes.plot(across, up, linestyle=line, marker=marker, markersize=6, color=colour, label=family)
