"""`routing.json` and its picture: where the tokens of a run's last steps went."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from neuronmoe_plugins.figures import house_style, save_png, svg_text
from neuronmoe_plugins.files import write_json, write_text
from neuronmoe_plugins.tuner import MoeConfig
from neuronmoe_plugins.tuner.config import LOSS_COEFFICIENTS
from neuronmoe_plugins.tuner.counts import RoutingCounts, as_shares
from neuronmoe_plugins.tuner.monitor import StepCounts
from neuronmoe_plugins.tuner.routing_figure import draw_routing


def write_routing(folder: Path, recent: StepCounts, config: MoeConfig) -> None:
    """Write `routing.json`, `routing.png` and `routing.svg`, each in one go.

    Args:
        folder: The run's output.
        recent: Counts of at least one step.
        config: The adapter's configuration.
    """
    write_json(folder / "routing.json", describe_routing(recent, config))
    with house_style():
        figure = draw_routing(recent.counts, f"Routing in steps {recent.first_step} to {recent.last_step}")
        save_png(figure, folder / "routing.png")
        write_text(folder / "routing.svg", svg_text(figure, "routing"))


def describe_routing(recent: StepCounts, config: MoeConfig) -> dict[str, Any]:
    """What `routing.json` holds.

    Returns:
        The steps that were measured, what routed and trained them, and `layers`: by layer index the experts, and for
        `all` tokens, and those of `old` and `new` languages where there are any, the number of tokens, and by expert
        the choices, their shares, the first choices and their shares.
    """
    counts = recent.counts
    return {
        "first_step": recent.first_step,
        "last_step": recent.last_step,
        "topk": config.topk,
        "train_only_router": config.train_only_router,
        "coefficients": {name: getattr(config, name) for name in LOSS_COEFFICIENTS},
        "layers": {
            str(layer): {"num_experts": num_experts, "topk": topk} | _describe_layer(counts, place, num_experts)
            for place, (layer, topk, num_experts) in enumerate(counts.shapes)
        },
    }


def _describe_layer(counts: RoutingCounts, place: int, num_experts: int) -> dict[str, Any]:
    """By kind of tokens, what the layer at this place chose."""
    described = {}
    for tokens in ("all", "old", "new"):
        number = int(counts.num_tokens(tokens)[place])
        if not number:
            continue
        users, firsts = (of(tokens)[place : place + 1, :num_experts] for of in (counts.users, counts.firsts))
        described[tokens] = {
            "tokens": number,
            "expert0_share": as_shares(firsts)[0, 0].item(),
            "shares": as_shares(users)[0].tolist(),
            "first_choice_shares": as_shares(firsts)[0].tolist(),
            "choices": users[0].tolist(),
            "first_choices": firsts[0].tolist(),
        }
    return described
