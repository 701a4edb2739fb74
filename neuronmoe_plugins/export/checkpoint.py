"""The folder of an export: weights that are read and written shard by shard, and what belongs beside them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.export.mixture import Mixture
from neuronmoe_plugins.export.sources import Source
from neuronmoe_plugins.files import write_json, write_text
from neuronmoe_plugins.models import local_file
from neuronmoe_plugins.progress import track

# One shard is in memory at a time.
SHARD_BYTES = 500_000_000
# Not rounded with the others: what it says is which experts there are.
KEPT_IN_FLOAT32 = "e_score_correction_bias"
TOKENIZER_FILES = (
    *("tokenizer_config.json", "tokenizer.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
    *("chat_template.json", "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "tekken.json"),
)
CARD = """\
---
base_model: {base_json}
library_name: {library}
pipeline_tag: text-generation
tags:
- moe
- neuronmoe
---

# A mixture of experts on {base}

Trained with neuronmoe-plugins, and written in the architecture {model_type}, which computes the same. {runs}

Experts in each layer, the base model's MLP included: {experts}. A token uses {topk} in each mixture.
{parameters}

{compared}

## The adapter's configuration

```json
{recipe}
```
"""
IN_TRANSFORMERS = """\
{needs}

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained({folder}, dtype="auto")
tokenizer = AutoTokenizer.from_pretrained({folder})
```"""
IN_LLAMA_CPP = """\
It needs no
package but llama.cpp:

```console
llama-cli -m {file}
llama-server -m {file}
```"""
# Keys of the adapter's configuration that say how it was trained; those without a value are left out.
RECIPE = (
    *("num_experts", "topk", "expert_rank", "lora_alpha", "use_rslora", "layers_to_transform", "old_num_experts"),
    *("aux_loss_coef", "lpr_loss_coef", "sequential_add_loss_coef", "train_only_router"),
)


def num_parameters(tensors: Mapping[str, Source]) -> int:
    """Of all tensors together."""
    return sum(torch.Size(source.shape).numel() for source in tensors.values())


def require_space(output: Path, needed: int) -> None:
    """Raise `UserError` if the disk has no room for that many bytes."""
    folder = next(folder for folder in (output, *output.parents) if folder.exists())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(f"--output {output} needs {needed / 1e9:.1f} GB, and {folder} has {free / 1e9:.1f} GB free")


def write_weights(folder: Path, tensors: Mapping[str, Source], dtype: torch.dtype, progress: bool) -> bool:
    """Write safetensors, in several files with an index where they are large.

    Args:
        folder: Where to.
        tensors: By name.
        dtype: What they are written in.
        progress: Show a progress bar on standard error.

    Returns:
        Whether a tensor had to be rounded.
    """
    shapes = {name: torch.empty(source.shape, dtype=dtype, device="meta") for name, source in tensors.items()}
    split = split_torch_state_dict_into_shards(shapes, max_shard_size=SHARD_BYTES)
    is_rounded = False
    for file, names in track(list(split.filename_to_tensors.items()), "writing", progress):
        shard: dict[str, torch.Tensor] = {}
        for name in names:
            given = tensors[name].read()
            # A copy: two that were read of one tensor share their memory, which safetensors refuses.
            shard[name] = given.to(torch.float32 if KEPT_IN_FLOAT32 in name else dtype, copy=True).contiguous()
            is_rounded = is_rounded or not shard[name].to(given.dtype).equal(given)
        save_file(shard, folder / file, metadata={"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        write_json(folder / SAFE_WEIGHTS_INDEX_NAME, index)
    return is_rounded


def copy_beside(mixture: Mixture, folder: Path) -> bool:
    """Copy the tokenizer, the adapter's if it has one, and the base's generation config.

    Returns:
        Whether there is a tokenizer.
    """
    home, _ = mixture.tokenizer_home
    found = {file: local_file(home, file) for file in TOKENIZER_FILES}
    generation = "generation_config.json"
    for file, path in (found | {generation: local_file(mixture.base.name, generation)}).items():
        if path is not None:
            shutil.copyfile(path, folder / file)
    return any(found.values())


def write_card(folder: Path, mixture: Mixture, **said: Any) -> None:
    """Write README.md.

    Args:
        folder: Where to.
        mixture: What was exported.
        said: Of `CARD`: library, model_type, runs, parameters, compared.
    """
    recipe = {key: getattr(mixture.config, key) for key in RECIPE}
    text = CARD.format(
        base=mixture.base.name,
        base_json=json.dumps(mixture.base.name),
        experts=", ".join(map(str, mixture.counts.values())),
        topk=mixture.config.topk,
        recipe=json.dumps({key: value for key, value in recipe.items() if value not in (None, False)}, indent=2),
        **said,
    )
    write_text(folder / "README.md", text)
