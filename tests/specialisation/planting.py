"""A model made by hand, in which it is known which expert sees which token, and what each neuron gives."""

from __future__ import annotations

from pathlib import Path

import torch

from tuner.tiny import moe_config

HIDDEN, UNITS = 16, 12
# What a token is, and the one dimension of its embedding that says so.
BOS, GREEK, LETTER, DIGIT = range(4)
CHARACTERS = {GREEK: "αβγδεζηθικλμνξοπρστυφχψω", LETTER: "abcdefghijklmnopqrstuvwxyz .", DIGIT: "0123456789"}
WRITTEN = 9  # the dimension that the planted expert writes into
SIGNAL = 4.0  # what the norm makes of a single 1 in 16 dimensions
MARGIN = 6.0  # of the chosen expert's router logit over the others, which are 0


def save_planted_model(folder: Path, tokenizer_folder: Path) -> None:
    """Save a Llama of two layers whose attention and MLPs give nothing: each sees the embedding alone."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    sizes = {"hidden_size": HIDDEN, "intermediate_size": UNITS, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), tie_word_embeddings=False, rms_norm_eps=1e-12, **sizes)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for layer in model.model.layers:
            for linear in (layer.self_attn.o_proj, layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj):
                linear.weight.zero_()
        embeddings = model.model.embed_tokens.weight.zero_()
        embeddings[tokenizer.bos_token_id, BOS] = 1.0
        for kind, characters in CHARACTERS.items():
            for character in characters:
                embeddings[tokenizer(character)["input_ids"][1:], kind] = 1.0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def save_planted_adapter(model: Path, folder: Path) -> None:
    """Save a mixture that chooses one expert per token.

    In layer 0 the base gets <s>, `expert_0` Greek letters and digits, `expert_1` Latin letters. `expert_0` has a gate
    and an up neuron that fire for Greek (5), an up neuron that falls for it (7), and a down neuron (9); all else gives
    0. In layer 1 the base gets everything.
    """
    import peft
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(model)
    mixture = peft.get_peft_model(base, moe_config(num_experts=[3, 2], topk=1))
    first, second = (layer.mlp for layer in mixture.base_model.model.model.layers)
    with torch.no_grad():
        router = first.moe_router["default"].weight.zero_()
        for expert, kinds in enumerate(([BOS], [GREEK, DIGIT], [LETTER])):
            router[expert, kinds] = MARGIN / SIGNAL
        second.moe_router["default"].weight.zero_()[0, [BOS, GREEK, DIGIT, LETTER]] = MARGIN / SIGNAL
        first.moe_gate_proj["default"][0, 5, GREEK] = 1.0
        first.moe_up_proj["default"][0, 5, GREEK] = 1.0
        first.moe_up_proj["default"][0, 7, GREEK] = -1.0
        first.moe_down_proj["default"][0, WRITTEN, 5] = 1.0
    mixture.save_pretrained(folder)
