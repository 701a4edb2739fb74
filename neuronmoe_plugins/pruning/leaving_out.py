"""Measures what leaving experts out costs, and how many tokens chose each of them.

An expert that is left out has the router logit -inf, so that the tokens that would choose it choose others, as in a
mixture without it. Leaving out one of layer l changes nothing before it: its batch is run on from there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from neuronmoe_plugins.feed_forward import find_feed_forwards
from neuronmoe_plugins.neurons.arrays import IntArray, ScoreArray
from neuronmoe_plugins.neurons.language_losses import LanguageLosses
from neuronmoe_plugins.neurons.places import find_mixtures
from neuronmoe_plugins.neurons.pooling import take_input
from neuronmoe_plugins.progress import track

if TYPE_CHECKING:
    from neuronmoe_plugins.neurons.sentences import TokenizedSentences
    from neuronmoe_plugins.tuner import MoeLayer

Place: TypeAlias = tuple[int, int]
"""Decoder layer, and the expert's index there, from 1 on."""
# Under which PEFT loads an adapter that is given no name.
ADAPTER_NAME = "default"


@dataclass(frozen=True)
class Measured:
    """What the experts of an adapter are good for, on the texts of several languages.

    Attributes:
        before: The loss with all of them, float64 (languages,), nats per token.
        tokens: How many tokens are predicted, int64 (languages,).
        shares: For each expert beside the base, which share of each language's tokens chose it, float64 (languages,).
        alone: The loss without this expert, float64 (languages,).
        unused: Those that no token chose, and that change nothing by being there.
    """

    before: ScoreArray
    tokens: IntArray
    shares: Mapping[Place, ScoreArray]
    alone: Mapping[Place, ScoreArray]
    unused: Sequence[Place]

    def rise(self, losses: ScoreArray) -> float:
        """By how much of itself the loss rises on the language on which that is most."""
        return float((losses / self.before - 1).max())


class LeavingOut:
    """A model with an adapter, some of whose experts can be left out.

    Args:
        model: The PEFT model, in evaluation mode.
        sentences: Texts of several languages.
        batch_size: Texts per forward pass.

    Raises:
        UserError: if the adapter has no mixture.
    """

    def __init__(self, model: Any, sentences: TokenizedSentences, batch_size: int) -> None:
        self.losses = LanguageLosses(model, sentences, batch_size)
        self._mixtures = find_mixtures(model)
        base = model.get_base_model()
        self._blocks = [base.get_submodule(mlp.name.rpartition(".")[0]) for mlp in find_feed_forwards(base).values()]
        self._real = np.bincount(self.losses.labels, weights=sentences.tokens())
        self.places = [
            (layer, expert)
            for layer, mixture in self._mixtures.items()
            for expert in range(1, mixture.plans[ADAPTER_NAME].num_experts)
        ]

    def each_alone(self, progress: bool = False) -> Measured:
        """Leave out every expert by itself.

        Batches in which no token chose it are not run for it, where router weights are renormalised (top-k of 2 or
        more): without it they would be the same.

        Args:
            progress: Show a progress bar on standard error.
        """
        before, chosen = np.zeros(len(self.losses.tokens)), self._no_tokens()
        alone: dict[Place, ScoreArray] = defaultdict(lambda: np.zeros(len(self.losses.tokens)))
        for texts in track(self.losses.batches, "Leaving out each expert", progress):
            with _recording(self._blocks) as outputs, self._counting(texts) as counts:
                whole = self.losses.of_batch(texts)
            before += whole
            for place in self.places:
                own = counts[place[0]][:, place[1]]
                chosen[place] += own
                if not own.any() and self._renormalises(place):
                    alone[place] += whole
                    continue
                known = 0 if self.losses.uses_cache else place[0]
                with self.without([place]), _replaying(self._blocks[:known], outputs):
                    alone[place] += self.losses.of_batch(texts)
        means = {place: self.losses.means(alone[place]) for place in self.places}
        unused = [place for place in self.places if not chosen[place].any() and self._renormalises(place)]
        shares = {place: chosen[place] / self._real for place in self.places}
        return Measured(self.losses.means(before), self.losses.tokens, shares, means, unused)

    def together(self, left_out: Collection[Place]) -> ScoreArray:
        """The loss without some of the experts, float64 (languages,), nats per token."""
        with self.without(left_out):
            return self.losses.measure()

    @contextmanager
    def without(self, left_out: Collection[Place]) -> Iterator[None]:
        """Mask some experts' router logits within the context."""
        with ExitStack() as hooks:
            for layer, mixture in self._mixtures.items():
                first = 0
                for router in _routers(mixture):
                    rows = range(first, first + router.out_features)
                    own = [expert - first for place, expert in left_out if place == layer and expert in rows]
                    if own:
                        hooks.callback(router.register_forward_hook(partial(_mask, own)).remove)
                    first = rows.stop
            yield

    def _renormalises(self, place: Place) -> bool:
        return self._mixtures[place[0]].topk[ADAPTER_NAME] > 1

    def _no_tokens(self) -> dict[Place, IntArray]:
        return {place: np.zeros(len(self.losses.tokens), dtype=np.int64) for place in self.places}

    @contextmanager
    def _counting(self, texts: Sequence[int]) -> Iterator[dict[int, IntArray]]:
        """Layer -> (languages, experts), how many of the texts' tokens chose each expert; filled as the model runs."""
        counts: dict[int, IntArray] = {}
        labels = torch.from_numpy(self.losses.labels[list(texts)])

        def count(layer: int, hidden_states: Tensor) -> None:
            mixture = self._mixtures[layer]
            routed = mixture.route_tokens(hidden_states)
            assert routed is not None, "the adapter is active"
            logits, _, selected = routed
            real = mixture.context.current.attention_mask.bool()
            chosen = logits.new_zeros(len(logits), logits.shape[-1] + 1, dtype=torch.int64)
            chosen = chosen.scatter_(1, selected, 1)[real.flatten().to(logits.device), :-1].cpu()  # the last is none
            own = labels.unsqueeze(1).expand(real.shape)[real.cpu()]
            sums = torch.zeros(len(self.losses.tokens), logits.shape[-1], dtype=torch.int64)
            counts[layer] = sums.index_add_(0, own, chosen).numpy()

        with ExitStack() as hooks:
            for layer, mixture in self._mixtures.items():
                hooks.callback(take_input(mixture, partial(count, layer)).remove)
            yield counts


def _routers(mixture: MoeLayer) -> list[nn.Linear]:
    """The kept rows of the router and the others, as far as there are any."""
    modules: list[Any] = [mixture.moe_old_router, mixture.moe_router]
    return [module[ADAPTER_NAME] for module in modules if ADAPTER_NAME in module]


def _mask(experts: list[int], router: nn.Module, args: Any, logits: Tensor) -> Tensor:
    return logits.index_fill(-1, torch.tensor(experts, device=logits.device), -torch.inf)


@contextmanager
def _recording(blocks: Sequence[nn.Module]) -> Iterator[list[Any]]:
    """What each decoder layer gives, whatever its form; filled as the model runs."""
    outputs: list[Any] = [None] * len(blocks)
    with ExitStack() as hooks:
        for layer, block in enumerate(blocks):

            def record(module: nn.Module, args: Any, output: Any, layer: int = layer) -> None:
                outputs[layer] = output

            hooks.callback(block.register_forward_hook(record).remove)
        yield outputs


@contextmanager
def _replaying(blocks: Sequence[nn.Module], outputs: Sequence[Any]) -> Iterator[None]:
    """Let decoder layers give what they gave before, without running."""
    earlier = [vars(block).get("forward") for block in blocks]
    try:
        for block, output in zip(blocks, outputs, strict=False):
            vars(block)["forward"] = lambda *args, output=output, **kwargs: output
        yield
    finally:
        for block, forward in zip(blocks, earlier, strict=True):
            if forward is None:
                del vars(block)["forward"]
            else:
                vars(block)["forward"] = forward
