"""Pools what passes through a model's places, from a value per token to one per sentence, where the values are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.hooks import RemovableHandle

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.neurons.arrays import ModuleKey
from neuronmoe_plugins.neurons.places import Place


@dataclass(frozen=True)
class RealTokens:
    """Which tokens of a batch are no padding.

    Attributes:
        shape: Batch and tokens.
        counts: Real tokens of each sentence, int64 (batch, 1).
        padding: Places of the others among all tokens of the batch, int64.
    """

    shape: tuple[int, int]
    counts: Tensor
    padding: Tensor

    @classmethod
    def of(cls, attention_mask: Tensor) -> RealTokens:
        """The tokens where the mask (batch, tokens) is not zero."""
        batch, tokens = attention_mask.shape
        real = attention_mask.bool()
        return cls((batch, tokens), real.sum(dim=1, keepdim=True), (~real).flatten().nonzero().squeeze(1))

    def to(self, device: torch.device) -> RealTokens:
        """The same on another device."""
        return RealTokens(self.shape, self.counts.to(device), self.padding.to(device))

    def fill_padding(self, values: Tensor, fill: float) -> Tensor:
        """Values (batch, tokens, units) with this in place of what padding has, which may be NaN."""
        if not len(self.padding):
            return values
        filled = values.clone(memory_format=torch.contiguous_format)
        filled.view(-1, values.shape[-1])[self.padding] = fill
        return filled


Pooling: TypeAlias = Callable[[Tensor, RealTokens], Tensor]
"""Takes values (batch, tokens, units) and says which are real; returns float32 (batch, units)."""


def mean(values: Tensor, tokens: RealTokens) -> Tensor:
    """Mean over the real tokens (paper, section 3.1)."""
    return _total(values, tokens) / tokens.counts


def maximum(values: Tensor, tokens: RealTokens) -> Tensor:
    """Largest value of the real tokens."""
    return tokens.fill_padding(values, -torch.inf).amax(dim=1).float()


def active_tokens(values: Tensor, tokens: RealTokens) -> Tensor:
    """Number of real tokens with a value above zero."""
    filled = tokens.fill_padding(values, 0.0)
    # The second term is zero, or NaN where a value is not finite, which a comparison would hide.
    return (filled > 0).float().sum(dim=1) + 0 * filled.sum(dim=1, dtype=torch.float32)


def sum_of_directions(values: Tensor, tokens: RealTokens) -> Tensor:
    """Sum of the real tokens' unit vectors, whose dot products are sums of cosines over all pairs of tokens."""
    return _total(F.normalize(values.float(), dim=-1), tokens)


def _total(values: Tensor, tokens: RealTokens) -> Tensor:
    return tokens.fill_padding(values, 0.0).sum(dim=1, dtype=torch.float32)


class Recorder:
    """Pools the values of each place over the real tokens of the batch at hand.

    Args:
        places: All of them.

    Attributes:
        pooled: What the last batch gave, float32 (batch, units) on the device of each place.
    """

    def __init__(self, places: Iterable[ModuleKey]) -> None:
        self._places = places
        self.pooled: dict[ModuleKey, Tensor] = {}
        self._tokens: dict[torch.device, RealTokens] = {}
        self._replaying: nn.Module | None = None

    def start_batch(self, attention_mask: Tensor) -> None:
        """Take the mask (batch, tokens) of the batch that comes next."""
        self._tokens = {attention_mask.device: RealTokens.of(attention_mask)}
        self.pooled = {}

    def finish_batch(self) -> None:
        """Raise `UserError` if a place recorded nothing, as attention layers that borrow the keys of others."""
        for layer, name in self._places:
            if (layer, name) not in self.pooled:
                raise UserError(f"layer {layer} {name} has no part in a forward pass; choose other --components")

    def record(self, key: ModuleKey, place: Place, pooling: Pooling, values: Tensor) -> None:
        """Pool the values (batch, tokens, units) of a place.

        Raises:
            UserError: if they are not those of every token, as in a model that is itself a mixture of experts.
        """
        if place.mixture is not self._replaying:
            return
        if values.device not in self._tokens:
            self._tokens[values.device] = next(iter(self._tokens.values())).to(values.device)
        tokens = self._tokens[values.device]
        shape = (*tokens.shape, place.units)
        # OPT's MLP has batch and tokens in one.
        if values.shape not in (shape, (shape[0] * shape[1], place.units)):
            raise UserError(
                f"layer {key[0]} {key[1]} does not see every token of a batch: its values are {tuple(values.shape)}, "
                f"expected {shape}; choose other --components, or an adapter that adds no tokens"
            )

        def pool(seen: Tensor) -> None:
            self.pooled[key] = pooling(seen.reshape(shape), tokens)

        if place.attributed:
            kept = values.detach().clone()  # which the model may overwrite before the backward pass
            values.register_hook(lambda gradient: pool(-kept.float() * gradient.float()))
        else:
            pool(values.detach())

    def replay(self, mixture: nn.Module, hidden_states: Tensor) -> None:
        """Run a mixture's original MLP on all tokens.

        In the mixture's own forward it sees only the tokens that the router sends there, and its activation function
        also those of other experts.
        """
        self._replaying = mixture
        try:
            mixture.get_base_layer()(hidden_states)  # type: ignore[operator]
        finally:
            self._replaying = None


@contextmanager
def recording(places: Mapping[ModuleKey, tuple[Place, Pooling]]) -> Iterator[Recorder]:
    """Hook all places; the hooks are gone when the block ends."""
    recorder = Recorder(places)
    with ExitStack() as hooks:
        for mixture in {place.mixture for place, _ in places.values() if place.mixture is not None}:
            hooks.callback(take_input(mixture, partial(recorder.replay, mixture)).remove)
        for key, (place, pooling) in places.items():
            record = partial(recorder.record, key, place, pooling)
            hook = take_input if place.of_input else take_output
            hooks.callback(hook(place.module, record).remove)
        yield recorder


def take_input(module: nn.Module, take: Callable[[Tensor], None]) -> RemovableHandle:
    """Hook a module: `take` gets what it is called with, by place or by name."""
    return module.register_forward_pre_hook(
        lambda module, args, kwargs: take(args[0] if args else next(iter(kwargs.values()))), with_kwargs=True
    )


def take_output(module: nn.Module, take: Callable[[Tensor], None]) -> RemovableHandle:
    """Hook a module: `take` gets what it gives."""
    return module.register_forward_hook(lambda module, args, output: take(output))
