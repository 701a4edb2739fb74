"""`llamafactory-cli export` of a mixture: its adapter and how to load it, since it has no merged checkpoint."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from llamafactory.extras import logging
from llamafactory.hparams import get_infer_args, read_args
from peft import get_peft_model, load_peft_weights
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PretrainedConfig, PreTrainedModel

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.files import new_directory, new_folder, write_text, writing
from neuronmoe_plugins.integrations.llamafactory.adapter import adapter_location, of_rank
from neuronmoe_plugins.integrations.llamafactory.given_arguments import is_moe
from neuronmoe_plugins.integrations.llamafactory.run import MoeRun
from neuronmoe_plugins.integrations.stand_ins import Call
from neuronmoe_plugins.models import ADAPTER_WEIGHTS
from neuronmoe_plugins.tuner.checkpoint import from_file
from neuronmoe_plugins.tuner.reference_format import tensors_from_published

logger = logging.get_logger("llamafactory.neuronmoe")
# Options of the host's export that need a merged checkpoint, and what to do without one.
NEEDS_MERGED = {
    "export_quantization_bit": "a mixture cannot be merged, and so not quantised as one model: remove the key",
    "export_hub_model_id": "the export of a mixture is not pushed: remove the key, and upload export_dir yourself",
    "export_legacy_format": "adapters of mixtures are written as safetensors alone: remove the key",
}
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
The new ones{low_rank} and the routers together have {size:,} parameters.

`adapter_model.safetensors` holds them, and `adapter_config.json` says where they belong. The tokenizer is that of the
base model, with the chat template that LLaMA-Factory was given.

## Why this is no merged checkpoint

What LoRA learns can be added to the weights of the base model. A mixture has no such sum: in each of its layers, a
router sends every token to {topk} of several experts, one of which is the base model's own, so that no dense model
computes the same. It stays an adapter, which is loaded on top of the unchanged base model.

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


def export_adapter(run: MoeRun) -> Path:
    """Write the adapter in this package's format, the tokenizer, and a model card into `export_dir`.

    The experts keep the dtype that they were saved in, unless `infer_dtype` names another. Of the base model only the
    configuration is read.

    Args:
        run: The run; the template of its data arguments may change the tokenizer.

    Returns:
        The folder.

    Raises:
        UserError: if there is something in the folder already, an option needs a merged checkpoint, or the adapter does
            not fit the base model.
    """
    folder = check_export(run.model_args)
    base, config = _without_weights(run.base_config), run.new_config()
    config.inference_mode = True
    config.base_model_name_or_path = run.model_args.model_name_or_path
    tensors = _load_tensors(run.model_args)
    from_file(tensors, get_peft_model(base, config, low_cpu_mem_usage=True), "default")  # raises if it does not fit
    size = sum(tensor.numel() for tensor in tensors.values())
    with writing(f"export_dir: {folder}"), new_directory(folder) as partial:
        save_file(tensors, partial / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        config.save_pretrained(str(partial))
        _save_tokenizer(run.model_args, run.data_args, partial)
        write_text(partial / "README.md", model_card(run, size))
    return folder


def check_export(model_args: Any) -> Path:
    """The folder of `export_dir`, which has to be new or empty; raises UserError as :func:`export_adapter`."""
    if model_args.export_dir is None:
        raise UserError("export needs a folder to write into: set export_dir")
    for key, remedy in NEEDS_MERGED.items():
        if getattr(model_args, key):
            raise UserError(f"{key}: {remedy}")
    new_folder("export_dir:", Path(model_args.export_dir))
    return Path(model_args.export_dir).resolve()


def export_model(call: Call) -> None:
    """Stand in for `export_model(args)`."""
    given = read_args(call.arguments.get("args"))
    if not is_moe(given):
        call.host()
        return
    folder = export_adapter(get_infer_args(given)[2].run)
    logger.info_rank0(
        "A mixture of experts cannot be merged into its base model: wrote the adapter and the tokenizer to "
        f"{folder}, and how to load them to {folder / 'README.md'}"
    )


def _load_tensors(model_args: Any) -> dict[str, torch.Tensor]:
    """The adapter's tensors in this package's format, in the dtype that is asked for."""
    path = model_args.adapter_name_or_path[-1]
    tensors = tensors_from_published(load_peft_weights(path, device="cpu", **adapter_location(model_args)))
    dtype = None if model_args.infer_dtype == "auto" else getattr(torch, model_args.infer_dtype)
    return {name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()}


def _without_weights(config: PretrainedConfig) -> PreTrainedModel:
    """The base model on the meta device, of the class that the host would load."""
    takes_images = type(config) in AutoModelForImageTextToText._model_mapping
    with init_empty_weights():
        return (AutoModelForImageTextToText if takes_images else AutoModelForCausalLM).from_config(config)


def _save_tokenizer(model_args: Any, data_args: Any, folder: Path) -> None:
    """As the host exports it: changed by the template, padding on the left."""
    from llamafactory.data import get_template_and_fix_tokenizer
    from llamafactory.model import load_tokenizer

    modules = load_tokenizer(model_args)
    tokenizer = modules["tokenizer"]
    get_template_and_fix_tokenizer(tokenizer, data_args)
    tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = "left"
    tokenizer.save_pretrained(folder)
    if modules["processor"] is not None:
        modules["processor"].save_pretrained(folder)


def model_card(run: MoeRun, size: int) -> str:
    """Markdown with the metadata that the hub reads.

    Args:
        run: The run: the base model, the folder of the export, the template and the mixture's layers.
        size: Parameters of the adapter.
    """
    model_args, template, plans = run.model_args, run.data_args.template, run.plans
    base, folder, revision = model_args.model_name_or_path, str(model_args.export_dir), model_args.model_revision
    named = revision != "main"
    lm_eval = f"pretrained={base},peft={folder},dtype=auto" + (f",revision={revision}" if named else "")
    return CARD.format(
        base=base,
        base_json=json.dumps(base),
        folder_json=json.dumps(folder),
        num_mixtures=len(plans),
        num_layers=run.num_layers,
        experts=", ".join(f"{plan.num_experts} in layer {layer}" for layer, plan in sorted(plans.items())),
        low_rank=f", low-rank deltas{rank} on the base model's weights," if (rank := of_rank(plans.values())) else "",
        size=size,
        template_line="" if template is None else f"\ntemplate: {template}",
        topk=run.config.topk,
        revision=f", revision={json.dumps(revision)}" if named else "",
        revision_line=f"\nmodel_revision: {json.dumps(revision)}" if named else "",
        model_args=shlex.quote(lm_eval),
    )
