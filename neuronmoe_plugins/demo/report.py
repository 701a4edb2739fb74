"""The demo's results as a table, Markdown, JSON and a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from safetensors import safe_open

from neuronmoe_plugins.allocation.allocation import Allocation
from neuronmoe_plugins.figures import house_style, new_figure, save_png
from neuronmoe_plugins.files import read_json, write_json, write_text
from neuronmoe_plugins.models import ADAPTER_WEIGHTS
from neuronmoe_plugins.tables import Table, as_markdown, print_table, print_text
from neuronmoe_plugins.vocabulary.extend import REPORT
from neuronmoe_plugins.vocabulary.options import LEARNT

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLE = "SmolLM2-135M learns Greek"
TEXT_TITLES = {
    "help_el": "held-out help, Greek",
    "help_en": "held-out help, English",
    "udhr_el": "UDHR, Greek",
    "udhr_en": "UDHR, English",
}
EXTENDED = "extended"
MODEL_TITLES = {"base": "base", EXTENDED: "larger vocabulary", "stage1": "stage 1", "stage2": "stage 2"}
SHARE_TEXTS = {"help_el": "Greek", "help_en": "English"}


@dataclass(frozen=True)
class Results:
    """What the demo measured.

    Attributes:
        bits_per_byte: Model (base, stage1, stage2, and extended where it was) -> text -> value.
        expert0_share: Stage -> text -> layer -> share of tokens whose most probable expert is the base MLP.
        new_experts: Layer -> number of added experts, for the layers that have some.
        added_parameters: Parameters of the new experts and routers.
        minutes: Step -> minutes.
        vocabulary: What the report of the extended vocabulary says; None where it was not extended.
    """

    bits_per_byte: dict[str, dict[str, float]]
    expert0_share: dict[str, dict[str, dict[str, float]]]
    new_experts: dict[int, int]
    added_parameters: int
    minutes: dict[str, float]
    vocabulary: dict[str, Any] | None

    def mean_expert0_share(self, stage: str, text: str) -> float:
        """Mean over the mixture layers."""
        shares = self.expert0_share[stage][text].values()
        return sum(shares) / len(shares)


def read_results(
    evaluation: Path,
    routing: Path,
    allocation: Path,
    training: Path,
    minutes: Mapping[str, float],
    extended: Path | None,
) -> Results:
    """Collect the results from the files that the steps wrote; `extended` is the model with the larger vocabulary."""
    models = [name for name in MODEL_TITLES if extended is not None or name != EXTENDED]
    num_experts = Allocation.load(allocation).num_experts
    with safe_open(training / "stage2" / ADAPTER_WEIGHTS, framework="numpy") as weights:
        names = weights.keys()
        added_parameters = sum(prod(weights.get_slice(name).get_shape()) for name in names)
    return Results(
        bits_per_byte={name: read_json(evaluation / name / "bits_per_byte.json") for name in models},
        expert0_share=read_json(routing),
        new_experts={layer: count - 1 for layer, count in enumerate(num_experts) if count > 1},
        added_parameters=added_parameters,
        minutes=dict(minutes),
        vocabulary=None if extended is None else read_json(extended / REPORT),
    )


def save_report(results: Results, output: Path, console: Console) -> None:
    """Print the table, and write `demo.md`, `demo.json` and `demo.png`.

    Args:
        results: What was measured.
        output: Folder of the files.
        console: Shows the table.
    """
    table = result_table(results)
    write_text(output / "demo.md", f"{as_markdown(table)}\n\n{_facts(results)}\n")
    write_json(output / "demo.json", asdict(results))
    _save_figure(results, output / "demo.png")
    print_table(console, table)
    print_text(console, _facts(results))
    print_text(console, f"Wrote {', '.join(str(output / name) for name in ('demo.md', 'demo.json', 'demo.png'))}")
    print_text(console, f"The neurons and the experts in pictures: {output / 'report.html'}")


def result_table(results: Results) -> Table:
    """One row per measure, with a value for base, stage 1 and stage 2."""
    rows = []
    for text, title in TEXT_TITLES.items():
        values = [own[text] for own in results.bits_per_byte.values()]
        rows.append([f"bits per byte: {title}", *(f"{value:.3f}" for value in values)])
    for text, language in SHARE_TEXTS.items():
        shares = [results.mean_expert0_share(stage, text) for stage in results.expert0_share]
        none = ["–"] * (len(results.bits_per_byte) - len(shares))
        rows.append([f"tokens on expert 0: {language}", *none, *(f"{share:.0%}" for share in shares)])
    return Table(TITLE, ["", *map(MODEL_TITLES.__getitem__, results.bits_per_byte)], rows)


def _save_figure(results: Results, path: Path) -> None:
    """Draw the table's numbers as two groups of bars."""
    bits_per_byte = {
        MODEL_TITLES[model]: {TEXT_TITLES[text].replace(", ", ",\n"): values[text] for text in TEXT_TITLES}
        for model, values in results.bits_per_byte.items()
    }
    shares = {
        MODEL_TITLES[stage]: {
            language: results.mean_expert0_share(stage, text) for text, language in SHARE_TEXTS.items()
        }
        for stage in results.expert0_share
    }
    with house_style():
        figure = new_figure(11, 4.2)
        figure.suptitle(TITLE)
        bits_axes, share_axes = figure.subplots(1, 2, width_ratios=[2, 1])
        _draw_bars(bits_axes, bits_per_byte, "{:.2f}")
        bits_axes.set(title="lower is better", ylabel="bits per byte")
        _draw_bars(share_axes, shares, "{:.0%}")
        share_label = "share of tokens on expert 0 (the base MLP)"
        share_axes.set(title="routing on held-out help", ylabel=share_label, ylim=(0, 1.1))
        save_png(figure, path)


def _draw_bars(axes: Axes, values: Mapping[str, Mapping[str, float]], label: str) -> None:
    """Draw one bar per series within each group.

    Args:
        axes: Where to draw.
        values: Series -> group -> height; every series has the same groups.
        label: Format of the numbers on the bars.
    """
    width = 0.8 / len(values)
    groups: Sequence[str] = list(next(iter(values.values())))
    for index, (series, heights) in enumerate(values.items()):
        positions = [group + (index - (len(values) - 1) / 2) * width for group in range(len(groups))]
        bars = axes.bar(positions, [heights[group] for group in groups], width, label=series)
        axes.bar_label(bars, fmt=label.format, fontsize=7)
    axes.set_xticks(range(len(groups)), groups)
    axes.legend()


def _facts(results: Results) -> str:
    """What has one value: the experts, the parameters and the minutes."""
    layers = ", ".join(f"{count} in layer {layer}" for layer, count in results.new_experts.items())
    steps = ", ".join(f"{name} {minutes:.1f}" for name, minutes in results.minutes.items())
    of, words = results.vocabulary, ""
    if of is not None:
        fits = next((each["before"], each["after"]) for each in of["corpora"] if each["use"] == LEARNT)
        before, after = (fit["tokens_per_word"] for fit in fits)
        words = (
            f"New tokens: {of['tokens']:,}; a Greek word of the training text has {after:.2f}, and had {before:.2f}.\n"
        )
    return words + (
        f"New experts: {sum(results.new_experts.values())} ({layers}); "
        f"{results.added_parameters / 1e6:.1f}M parameters added.\n"
        f"Minutes: {sum(results.minutes.values()):.1f} ({steps})."
    )
