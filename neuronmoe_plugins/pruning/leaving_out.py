"""Measures what leaving experts out costs, and how many tokens chose each of them.

An expert that is left out has the router logit -inf, so that the tokens that would choose it choose others, as in a
mixture without it; where a layer's MLP and attention have a mixture each, in both. Leaving out one of layer l changes
nothing before it: its batch is run on from there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from neuronmoe_plugins.blocks import layer_of
from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.feed_forward import find_feed_forwards
from neuronmoe_plugins.neurons.arrays import IntArray, ScoreArray
from neuronmoe_plugins.neurons.language_losses import LanguageLosses
from neuronmoe_plugins.progress import track
from neuronmoe_plugins.tuner.checkpoint import mixture_layers
from neuronmoe_plugins.tuner.metrics import RoutingShares
from neuronmoe_plugins.tuner.routing import LayerRouting

if TYPE_CHECKING:
    from neuronmoe_plugins.neurons.sentences import TokenizedSentences

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
        self._model, self.losses = model, LanguageLosses(model, sentences, batch_size)
        self._mixtures = [mixture for _, mixture in mixture_layers(model, ADAPTER_NAME)]
        if not self._mixtures:
            raise UserError("ADAPTER has no mixture of experts; name one of the method moe")
        self._renormalises = self._mixtures[0].topk[ADAPTER_NAME] > 1
        base = model.get_base_model()
        self._blocks = [base.get_submodule(mlp.name.rpartition(".")[0]) for mlp in find_feed_forwards(base).values()]
        self._real = np.bincount(self.losses.labels, weights=sentences.tokens())
        sizes = {mixture.layer_index: mixture.plans[ADAPTER_NAME].num_experts for mixture in self._mixtures}
        self.places = [(layer, expert) for layer, experts in sorted(sizes.items()) for expert in range(1, experts)]

    def each_alone(self, progress: bool = False) -> Measured:
        """Leave out every expert by itself.

        Batches in which no token chose it are not run for it, where router weights are renormalised (top-k of 2 or
        more): without it they would be the same.

        Args:
            progress: Show a progress bar on standard error.
        """
        before = np.zeros(len(self.losses.tokens))
        alone, chosen = ({place: np.zeros_like(before) for place in self.places} for _ in range(2))
        for texts in track(self.losses.batches, "Leaving out each expert", progress):
            with _recording(self._blocks) as outputs, self._counting(texts) as counts:
                whole = self.losses.of_batch(texts)
            before += whole
            for place in self.places:
                own = counts.of(place)
                chosen[place] += own
                if not own.any() and self._renormalises:
                    alone[place] += whole
                    continue
                known = 0 if self.losses.uses_cache else place[0]
                with self.without([place]), _replaying(self._blocks[:known], outputs):
                    alone[place] += self.losses.of_batch(texts)
        means = {place: self.losses.means(alone[place]) for place in self.places}
        unused = [place for place in self.places if not chosen[place].any() and self._renormalises]
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
            for mixture in self._mixtures:
                first = 0
                modules: list[Any] = [mixture.moe_old_router, mixture.moe_router]
                for router in (own[ADAPTER_NAME] for own in modules if ADAPTER_NAME in own):
                    rows = range(first, first + router.out_features)
                    masked = [
                        expert - first for layer, expert in left_out if layer == mixture.layer_index and expert in rows
                    ]
                    if masked:
                        hooks.callback(router.register_forward_hook(partial(_mask, masked)).remove)
                    first = rows.stop
            yield

    @contextmanager
    def _counting(self, texts: Sequence[int]) -> Iterator[_Chosen]:
        """How many of the texts' tokens chose each expert; filled as the model runs."""
        objective = self._model.base_model.objective
        objective.shares = counts = _Chosen(self.losses.labels[list(texts)], len(self.losses.tokens))
        try:
            yield counts
        finally:
            objective.shares = None


class _Chosen(RoutingShares):
    """Counts the tokens of each language that chose each expert, over the blocks of one forward pass.

    Args:
        labels: Language index of every text of the batch, int64 (batch,).
        languages: How many there are.

    Attributes:
        counts: Block's index -> int64 (languages, experts).
    """

    def __init__(self, labels: IntArray, languages: int) -> None:
        super().__init__()
        self._labels, self._languages = torch.from_numpy(labels), languages
        self.counts: dict[int, Tensor] = {}

    def add(self, layers: dict[int, LayerRouting], token_mask: Tensor | None) -> None:
        """Count one forward pass; `token_mask` (tokens,) bool, real tokens; all when not given."""
        for block, routing in layers.items():
            tokens, experts = routing.router_logits.shape
            labels = self._labels.repeat_interleave(tokens // len(self._labels))
            chosen = torch.zeros(tokens, experts + 1, dtype=torch.int64)
            chosen = chosen.scatter_(1, routing.selected_experts.cpu(), 1)[:, :-1]  # the last is none
            if token_mask is not None:
                real = token_mask.cpu()
                labels, chosen = labels[real], chosen[real]
            self.counts[block] = chosen.new_zeros(self._languages, experts).index_add_(0, labels, chosen)

    def of(self, place: Place) -> ScoreArray:
        """Tokens of each language that chose an expert, float64 (languages,); a mean over the layer's blocks."""
        own = [counts[:, place[1]] for block, counts in self.counts.items() if layer_of(block) == place[0]]
        mean: ScoreArray = torch.stack(own).double().mean(dim=0).numpy()
        return mean


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
