"""Added parameters are those that the tuner adds."""

from __future__ import annotations

import pytest
from transformers import GPTNeoXConfig, LlamaConfig

from neuronmoe_plugins.allocation.experts import BlockShapes

SIZES = {"vocab_size": 61, "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 4, "num_attention_heads": 2}
NUM_EXPERTS = [6, 1, 2, 3]


@pytest.mark.parametrize(
    "config",
    [LlamaConfig(**SIZES, num_key_value_heads=1), LlamaConfig(**SIZES, mlp_bias=True), GPTNeoXConfig(**SIZES)],
    ids=["gated", "gated with biases", "two layers with biases"],
)
def test_against_the_tuner(config: LlamaConfig | GPTNeoXConfig) -> None:
    import peft
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_config(config)
    copies = [
        sum(weight.numel() for weight in module.parameters())
        for name, module in base.named_modules()
        if name.endswith(".mlp")
    ]
    options = {"peft_type": "MOE", "task_type": "CAUSAL_LM", "num_experts": NUM_EXPERTS, "aux_loss_coef": 0.01}
    model = peft.get_peft_model(base, peft.get_peft_config(options))
    trainable = [
        sum(
            weight.numel() for name, weight in model.named_parameters() if weight.requires_grad and f".{layer}." in name
        )
        for layer in range(4)
    ]
    assert BlockShapes(12, copies).added_parameters(NUM_EXPERTS) == trainable
    assert trainable[1] == 0


def test_layers_of_different_sizes() -> None:
    assert BlockShapes(10, [100, 200, 300]).added_parameters([1, 2, 4]) == [0, 220, 940]


def test_the_layers_must_be_as_many() -> None:
    with pytest.raises(ValueError, match="shorter"):
        BlockShapes(10, [100, 200]).added_parameters([1, 2, 3])
