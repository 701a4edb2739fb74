"""Measures a model's loss on the texts of each language, as often as it is changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.neurons.activations import batches_by_length, needs_cache, padded, working_device
from neuronmoe_plugins.neurons.arrays import IntArray, ScoreArray
from neuronmoe_plugins.neurons.sentences import TokenizedSentences

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class LanguageLosses:
    """The loss of predicting each token of a text but the first, in nats, by language.

    Args:
        model: A causal language model on its devices, in evaluation mode.
        sentences: The texts, each of one language.
        batch_size: Texts per forward pass; those of like length share one.

    Attributes:
        batches: Numbers of the texts, batch by batch.
        labels: Language index of every text, int64 (texts,).
        uses_cache: Whether the model needs a KV cache.
        tokens: How many are predicted of each language, int64 (languages,).
    """

    def __init__(self, model: PreTrainedModel, sentences: TokenizedSentences, batch_size: int) -> None:
        samples = sentences.samples()
        assert samples is not None, "every text is of one corpus"
        self._model, self._sentences, self.labels = model, sentences, samples.labels
        self.uses_cache = needs_cache(model)
        self.batches = batches_by_length(sentences.token_ids, batch_size)
        self.tokens: IntArray = self._sums(range(len(self.labels)), sentences.tokens() - 1).astype(np.int64)
        for language, tokens in zip(sentences.languages, self.tokens, strict=True):
            if not tokens:
                raise UserError(f"the texts of {language} have one token each, and so nothing to predict; name others")

    @torch.inference_mode()
    def of_batch(self, texts: Sequence[int]) -> ScoreArray:
        """Run the model on some texts; float64 (languages,), the sum over their tokens in nats."""
        token_ids = [self._sentences.token_ids[text] for text in texts]
        batch = padded(token_ids, self._sentences.padding_side, working_device(self._model))
        logits = self._model(**batch, use_cache=self.uses_cache).logits
        sums = []
        for row, ids in enumerate(token_ids):
            first = logits.shape[1] - len(ids) if self._sentences.padding_side == "left" else 0
            own = slice(first, first + len(ids) - 1)
            targets = batch["input_ids"][row, own.start + 1 : own.stop + 1].to(logits.device)
            sums.append(F.cross_entropy(logits[row, own].float(), targets, reduction="sum"))
        return self._sums(texts, torch.stack(sums).double().cpu().numpy())

    def measure(self) -> ScoreArray:
        """Run the model on all texts; float64 (languages,), nats per token."""
        return self.means(sum(self.of_batch(texts) for texts in self.batches))

    def means(self, sums: ScoreArray | int) -> ScoreArray:
        """Nats per token of sums over all texts; raises `UserError` if one is not finite."""
        means: ScoreArray = sums / self.tokens
        for language, loss in zip(self._sentences.languages, means, strict=True):
            if not np.isfinite(loss):
                raise UserError(f"the loss on {language} is {loss}; use --dtype float32, or train the adapter anew")
        return means

    def _sums(self, texts: Sequence[int], values: ScoreArray | IntArray) -> ScoreArray:
        """Values of texts added up by language, float64 (languages,)."""
        languages = len(self._sentences.languages)
        return np.bincount(self.labels[list(texts)], weights=values, minlength=languages).astype(np.float64)
