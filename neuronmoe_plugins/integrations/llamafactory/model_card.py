"""The README.md of an exported mixture: what is in the folder, why it is no merged checkpoint, and how to load it."""

from __future__ import annotations

import json
import shlex
from typing import Any

from neuronmoe_plugins.tuner import MoeConfig

CARD = """\
---
base_model: {base_json}
library_name: peft
pipeline_tag: text-generation
tags:
- moe
- neuronmoe
- llama-factory
---

# A mixture of experts on {base}

{num_mixtures} of the {num_layers} layers are mixtures. Experts in each, the base model's MLP included: {experts}.
The new ones and the routers together have {size:,} parameters.

`adapter_model.safetensors` holds them, and `adapter_config.json` says where they belong. The tokenizer is that of the
base model, with the chat template that LLaMA-Factory was given.

## Why this is no merged checkpoint

What LoRA learns can be added to the weights of the base model. A mixture has no such sum: in each of its layers, a
router sends every token to {topk} of several MLPs, one of which is the base model's, so that no dense model computes
the same. It stays an adapter, which is loaded on top of the unchanged base model.

## How to load it

`pip install neuronmoe-plugins` teaches PEFT, LLaMA-Factory and lm-eval the method; nothing needs to be imported.

PEFT and transformers:

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained({base_json}{revision}, dtype="auto")
model = PeftModel.from_pretrained(base, {folder_json}).eval()
tokenizer = AutoTokenizer.from_pretrained({folder_json})
```

LLaMA-Factory, for `llamafactory-cli chat` and `api`:

```yaml
model_name_or_path: {base_json}{revision_line}
adapter_name_or_path: {folder_json}
finetuning_type: moe{template_line}
```

lm-eval:

```console
lm_eval --model hf --model_args {model_args} --tasks ...
```
"""


def model_card(model_args: Any, data_args: Any, config: MoeConfig, num_layers: int, size: int) -> str:
    """Markdown with the metadata that the hub reads.

    Args:
        model_args: The host's model arguments: the base model and the folder of the export.
        data_args: The host's data arguments: the template.
        config: The adapter's configuration.
        num_layers: Decoder layers of the base model.
        size: Parameters of the adapter.
    """
    base, folder, revision = model_args.model_name_or_path, str(model_args.export_dir), model_args.model_revision
    named = revision != "main"
    plans = config.layer_plans(num_layers)
    lm_eval = f"pretrained={base},peft={folder},dtype=auto" + (f",revision={revision}" if named else "")
    return CARD.format(
        base=base,
        base_json=json.dumps(base),
        folder_json=json.dumps(folder),
        num_mixtures=len(plans),
        num_layers=num_layers,
        experts=", ".join(f"{plan.num_experts} in layer {layer}" for layer, plan in sorted(plans.items())),
        size=size,
        template_line="" if data_args.template is None else f"\ntemplate: {data_args.template}",
        topk=config.topk,
        revision=f", revision={json.dumps(revision)}" if named else "",
        revision_line=f"\nmodel_revision: {json.dumps(revision)}" if named else "",
        model_args=shlex.quote(lm_eval),
    )
