"""The host's own arguments beside `finetuning_type: moe`."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import fields
from typing import Any

import pytest
from training_runs import refusal

# Of transformers 4, and not known to work with mixtures.
UNTRIED = {
    *("fp16_backend", "fp16_opt_level", "half_precision_backend", "save_safetensors", "past_index", "mp_parameters"),
    *("fsdp_min_num_params", "fsdp_transformer_layer_cls_to_wrap", "tp_size", "tpu_metrics_debug", "tpu_num_cores"),
    *("jit_mode_eval", "torchdynamo", "use_ipex", "use_legacy_prediction_loop"),
}
UNUSED = "no effect with finetuning_type: moe: "
BAD_INPUT: dict[str, tuple[dict[str, Any], str]] = {
    "LoRA": ({"lora_rank": 8, "lora_target": "all"}, f"^{UNUSED}lora_rank, lora_target; remove them$"),
    "a switch of LoRA": ({"pissa_init": True}, f"^{UNUSED}pissa_init; remove it$"),
    "OFT": ({"oft_rank": 4}, f"{UNUSED}oft_rank"),
    "freeze": ({"freeze_trainable_layers": 2}, f"{UNUSED}freeze_trainable_layers"),
    "a misspelt module": (
        {"additional_target": "lm_haed"},
        "^additional_target names lm_haed, which LlamaForCausalLM does not have$",
    ),
    "a module of a mixture": (
        {"additional_target": "up_proj"},
        r"^additional_target names up_proj, but model\.layers\.\d\.mlp becomes a mixture, .*: remove it$",
    ),
    "preferences": ({"pref_beta": 0.1}, f"{UNUSED}pref_beta"),
    "the balance loss of other models": (
        {"moe_aux_loss_coef": 0.1},
        re.escape(f"{UNUSED}moe_aux_loss_coef (did you mean aux_loss_coef?); remove it"),
    ),
    "accuracy of texts": ({"compute_accuracy": True}, "^no effect with stage: pt: compute_accuracy; remove"),
    "quantisation": ({"quantization_bit": 4}, "moe does not work with quantization_bit: load the base model unquant"),
    "vLLM": ({"infer_backend": "vllm"}, "infer_backend: vllm knows no mixtures: set infer_backend: huggingface"),
}
BAD_INPUT |= {
    f"refused {name}": ({name: True}, f"moe does not work with {name}: .*")
    for name in (
        *("use_unsloth", "use_kt", "use_mca", "use_hyper_parallel"),
        *("train_from_scratch", "use_llama_pro", "use_galore", "use_apollo", "use_badam", "use_adam_mini", "use_muon"),
    )
}
BAD_INPUT |= {
    f"a larger vocabulary: {name}": (
        {name: value},
        f"^finetuning_type: moe does not work with {name}: the rows of new tokens would stay random, and the adapter "
        "could not be loaded: extend the base model first, by `neuronmoe vocabulary`$",
    )
    for name, value in (
        *(("add_tokens", "new"), ("add_special_tokens", "<new>"), ("resize_vocab", True)),
        ("new_special_tokens_config", "nowhere.yaml"),
    )
}
BAD_INPUT["refused mixture of depths"] = ({"mixture_of_depths": "convert"}, "does not work with mixture_of_depths")


@pytest.mark.parametrize(("overrides", "message"), BAD_INPUT.values(), ids=BAD_INPUT.keys())
def test_bad_input_is_named(moe_args: dict[str, Any], overrides: dict[str, Any], message: str) -> None:
    assert re.search(message, refusal(moe_args | overrides))


def test_what_is_switched_off_says_nothing(moe_args: dict[str, Any]) -> None:
    from llamafactory.hparams import get_train_args

    off = {"use_galore": False, "pissa_init": False, "lora_alpha": None, "quantization_bit": None, "use_unsloth": False}
    assert get_train_args(moe_args | off)[3].finetuning_type == "moe"


def test_every_argument_of_the_host_is_in_one_table() -> None:
    from llamafactory.hparams import FinetuningArguments
    from llamafactory.hparams.parser import _INFER_ARGS, _TRAIN_ARGS

    from neuronmoe_plugins.integrations.llamafactory import host_arguments as tables
    from neuronmoe_plugins.integrations.llamafactory.arguments import inherited_fields

    of_methods = (tables.WORKS, tables.WORKS_IN_SFT, tables.WITHOUT_EFFECT, set(tables.REFUSED))
    of_others = (tables.OF_MODEL, tables.WITHOUT_EFFECT_OF_MODEL, set(tables.REFUSED_OF_MODEL))
    groups = (*of_methods, *of_others, tables.OF_DATA, tables.OF_TRAINING, tables.OF_GENERATION)
    named = Counter(name for group in groups for name in group)
    assert [name for name, times in named.items() if times > 1] == []
    given = {f.name for kind in (*_TRAIN_ARGS, *_INFER_ARGS) for f in inherited_fields(kind) if f.init}
    assert given - named.keys() <= UNTRIED
    assert {f.name for f in fields(FinetuningArguments) if f.init} <= {name for group in of_methods for name in group}
