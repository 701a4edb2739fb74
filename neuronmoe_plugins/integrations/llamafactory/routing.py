"""Routing over the last training steps: experts that hardly any token uses, `routing.json` and its picture."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neuronmoe_plugins.blocks import block_name
from neuronmoe_plugins.figures import draw_expert_shares, house_style, save_png, svg_text
from neuronmoe_plugins.files import write_json, write_text
from neuronmoe_plugins.tuner import MoeConfig
from neuronmoe_plugins.tuner.config import LOSS_COEFFICIENTS
from neuronmoe_plugins.tuner.metrics import FloatArray, RoutingCounts, as_shares

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# An expert is starved when less than this share of its layer's tokens used it in this many steps.
STARVED_SHARE = 0.01
STARVED_STEPS = 200

# How many parts the last steps are kept in; the oldest leaves as a whole.
NUM_PARTS = 10

# More experts than this leave no room for numbers in the cells.
MOST_NUMBERED = 16


@dataclass(frozen=True)
class StepCounts:
    """Counts of the steps `first_step` to `last_step`, both included; of none if the last is below the first."""

    first_step: int
    last_step: int
    counts: RoutingCounts

    @property
    def num_steps(self) -> int:
        """How many steps these are."""
        return self.last_step - self.first_step + 1

    def __add__(self, later: StepCounts) -> StepCounts:
        """These steps and those that follow them."""
        return StepCounts(self.first_step, later.last_step, self.counts + later.counts)


class RecentRouting:
    """Counts of the last optimizer steps.

    They are kept in whole windows between two logs: what :meth:`counts` gives is of the fewest windows that hold at
    least `min_steps` steps, or of up to a tenth more, so that memory does not grow with the number of logs.

    Args:
        min_steps: Steps to keep.
        last_step: The step before the first; above 0 after a resumption, which starts with nothing.
    """

    def __init__(self, min_steps: int, last_step: int = 0) -> None:
        self.min_steps = min_steps
        self.last_step = last_step
        self._parts: deque[StepCounts] = deque()

    def add(self, last_step: int, counts: RoutingCounts) -> None:
        """Add the window that ends with `last_step` and starts after the one before."""
        window = StepCounts(self.last_step + 1, last_step, counts)
        if self._parts and (self._parts[-1].num_steps + window.num_steps) * NUM_PARTS <= self.min_steps:
            self._parts[-1] += window
        else:
            self._parts.append(window)
        self.last_step = last_step
        while len(self._parts) > 1 and last_step - self._parts[0].last_step >= self.min_steps:
            self._parts.popleft()

    def counts(self) -> StepCounts:
        """All that is kept, as one."""
        first, *others = self._parts or [StepCounts(self.last_step + 1, self.last_step, RoutingCounts.none())]
        return sum(others, start=first)


@dataclass(frozen=True)
class StarvedExpert:
    """An expert that hardly any token uses.

    Attributes:
        layer: Index of its decoder layer, or that of the attention there (see `blocks.py`).
        expert: Its index, 0 for the base MLP.
        share: Share of the layer's tokens that used it, by any of their choices.
        new_share: The same of new-language tokens; None where no token is tagged as one.
    """

    layer: int
    expert: int
    share: float
    new_share: float | None


class StarvationMonitor:
    """Finds experts that less than 1 % of their layer's tokens used over 200 steps.

    What counts is the total over the last 200 optimizer steps, all micro-batches and processes of them together, as
    :class:`RecentRouting` keeps them. So it does not matter how often is logged, but that the steps come in whole log
    windows: one of 500 steps is looked at as a whole. The first 200 steps after the start, or after a resumption, are
    only watched.

    Args:
        last_step: The step after which training starts.
    """

    def __init__(self, last_step: int = 0) -> None:
        self._recent = RecentRouting(STARVED_STEPS, last_step)
        self._known: set[tuple[int, int]] = set()

    def add(self, last_step: int, counts: RoutingCounts) -> list[StarvedExpert]:
        """Add a log window that ends with `last_step`.

        Returns:
            Experts that are starved now and were not at the last call; one that recovers can be named again.
        """
        self._recent.add(last_step, counts)
        recent = self._recent.counts()
        if recent.num_steps < STARVED_STEPS:
            return []
        starved = {(expert.layer, expert.expert): expert for expert in starved_experts(recent.counts)}
        new = [expert for place, expert in starved.items() if place not in self._known]
        self._known = set(starved)
        return new


def starved_experts(counts: RoutingCounts) -> list[StarvedExpert]:
    """The experts with less than 1 % of their layer's tokens, by layer and expert."""
    shares, new_shares = (_shares_of_tokens(counts, tokens) for tokens in ("all", "new"))
    is_tagged = counts.num_tokens("new").any()
    found = []
    for place, expert in np.argwhere(shares < STARVED_SHARE).tolist():
        layer, _, num_experts = counts.shapes[place]
        if expert < num_experts and counts.num_tokens()[place]:
            new_share = float(new_shares[place, expert]) if is_tagged else None
            found.append(StarvedExpert(layer, expert, float(shares[place, expert]), new_share))
    return found


def _shares_of_tokens(counts: RoutingCounts, tokens: str) -> FloatArray:
    """(layers, experts): the share of the tokens that use each expert, which is above its share of the choices."""
    return counts.users(tokens) / np.maximum(counts.num_tokens(tokens), 1)[:, None]


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
        The steps that were measured, what routed and trained them, and `layers`: by layer index, `3 attention` for the
        attention of layer 3, the experts, and for `all` tokens, and those of `old` and `new` languages where there are
        any, the number of tokens, and by expert the choices, their shares, the first choices and their shares.
    """
    counts = recent.counts
    return {
        "first_step": recent.first_step,
        "last_step": recent.last_step,
        "topk": config.topk,
        "train_only_router": config.train_only_router,
        "coefficients": {name: getattr(config, name) for name in LOSS_COEFFICIENTS},
        "layers": {
            block_name(layer): {"num_experts": num_experts, "topk": topk} | _describe_layer(counts, place, num_experts)
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


def draw_routing(counts: RoutingCounts, title: str) -> Figure:
    """Shares of the choices, and of the first choices where tokens have several; those of old and new languages apart.

    Where every token chooses all experts of a layer, its shares are alike by necessity, and only the first choices are
    shown.

    Args:
        counts: Of at least one token. Languages are shown apart where tokens are tagged.
        title: Above all panels.
    """
    alike = [1 < experts <= topk for _, topk, experts in counts.shapes]
    if all(alike):
        title += "\nEach token chooses all experts"
    elif any(alike):
        title += f"\nAll choices: in layers of more than {max(topk for _, topk, _ in counts.shapes)} experts"
    panels, num_experts = _panels(counts), counts.choices.shape[-1]
    write = "{:.0f}".format if num_experts <= MOST_NUMBERED else None
    return draw_expert_shares(panels, title, list(map(block_name, counts.layers)), write, len(panels))


def _panels(counts: RoutingCounts) -> dict[str, FloatArray]:
    """Heading -> (layers, experts) in percent, NaN where a layer has no such expert or no such token."""
    kinds = {"old": "old languages", "new": "new languages"} if counts.is_tagged else {"all": "all tokens"}
    existing = np.arange(counts.choices.shape[-1]) < np.array([[experts] for _, _, experts in counts.shapes])
    several = any(topk > 1 for _, topk, _ in counts.shapes)
    some = np.array([[topk < experts] for _, topk, experts in counts.shapes])
    panels = {}
    for what, of, telling in (("all choices", counts.users, some), ("first choice", counts.firsts, np.ones_like(some))):
        for tokens, language in kinds.items():
            if counts.num_tokens(tokens).any() and telling.any() and (several or what == "first choice"):
                heading = f"{language}\n{what}" if several else language
                panels[heading] = np.where(existing & telling, 100 * as_shares(of(tokens)), np.nan)
    return panels
