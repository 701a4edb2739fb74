"""The architecture `neuronmoe` in vLLM: the base's own class there, with fused experts in place of some MLPs.

Shapes: hidden states are (tokens, hidden), as vLLM flattens a batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM
from vllm.config import VllmConfig
from vllm.model_executor.layers.fused_moe import FusedMoEFactory
from vllm.model_executor.layers.fused_moe.router.gate_linear import GateLinear
from vllm.model_executor.models.utils import AutoWeightsLoader, WeightsMapper, init_vllm_registered_model

from neuronmoe_plugins.errors import UserError

# vLLM's classes of these have a gated MLP in each of `model.layers`, and refuse another activation than silu.
BASES = ("llama", "mistral", "qwen2", "qwen3")


class Mixture(nn.Module):
    """A router and a layer's experts, expert 0 the base's MLP.

    Args:
        config: The base's.
        num_experts: Of this layer.
        topk: How many a token uses, where there are as many.
        quantisation: vLLM's, or None.
        prefix: Its name in the model.
    """

    def __init__(self, config: Any, num_experts: int, topk: int, quantisation: Any, prefix: str) -> None:
        super().__init__()
        self.gate = GateLinear(config.hidden_size, num_experts, prefix=f"{prefix}.gate")
        self.experts = FusedMoEFactory(
            num_experts=num_experts,
            top_k=min(topk, num_experts),
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            renormalize=topk > 1,
            quant_config=quantisation,
            prefix=f"{prefix}.experts",
        )

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(tokens, hidden) to the same."""
        logits, _ = self.gate(hidden_states)
        output: torch.Tensor = self.experts(hidden_states=hidden_states, router_logits=logits)
        return output


class NeuronMoeForCausalLM(nn.Module):
    """A base model with mixtures, as `neuronmoe export --as neuronmoe` writes it.

    Args:
        vllm_config: vLLM's configuration of all.
        prefix: What the names of its modules begin with.

    Raises:
        UserError: for a base of another family than `BASES`.
    """

    hf_to_vllm_mapper = WeightsMapper(orig_to_new_prefix={"": "base."})

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        self.config, self.name, text = config, vllm_config.model_config.model, config.text_config
        if text.model_type not in BASES:
            raise UserError(
                f"{self.name}: mixtures on {text.model_type} are not served by vLLM, those on "
                f"{', '.join(BASES)} are; use transformers"
            )
        self.base = init_vllm_registered_model(vllm_config, prefix=prefix, hf_config=text)
        quantisation, topk = vllm_config.quant_config, config.num_experts_per_tok
        for layer, num_experts in enumerate(config.experts_per_layer):
            if num_experts > 1:
                name = f"{prefix}.".lstrip(".") + f"model.layers.{layer}.mlp"
                self.base.model.layers[layer].mlp = Mixture(text, num_experts, topk, quantisation, name)

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Token ids (tokens) to (tokens, hidden)."""
        embedded: torch.Tensor = self.base.embed_input_ids(input_ids)
        return embedded

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Token ids or embeddings, and their positions (tokens), to hidden states (tokens, hidden)."""
        hidden: torch.Tensor = self.base(input_ids, positions, intermediate_tensors, inputs_embeds)
        return hidden

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        """(tokens, hidden) to (tokens, vocabulary)."""
        logits: torch.Tensor | None = self.base.compute_logits(hidden_states)
        return logits

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Take a checkpoint's tensors.

        Args:
            weights: Their names and values.

        Returns:
            The names of the parameters that they filled.

        Raises:
            UserError: for a tensor too many or too few, or of another shape; vLLM's loaders pass over some.
        """
        loaded: set[str] = AutoWeightsLoader(self).load_weights(self._checked(weights), mapper=self.hf_to_vllm_mapper)
        return loaded

    def _checked(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        shapes = _shapes(self.config)
        for name, tensor in weights:
            expected = shapes.pop(name, "nothing")
            if tuple(tensor.shape) != expected:
                raise UserError(f"{self.name}: its tensor {name} is {tuple(tensor.shape)} instead of {expected}")
            yield name, tensor
        if shapes:
            raise UserError(f"{self.name} lacks {len(shapes)} of its tensors, among them {min(shapes)}")


def _shapes(config: Any) -> dict[str, Any]:
    """Of all tensors of a checkpoint, by name, as transformers has them."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    heads = {"lm_head.weight"} if config.tie_word_embeddings else set()
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name not in heads}
