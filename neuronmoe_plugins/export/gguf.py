"""`neuronmoe export --as gguf`: a file for llama.cpp, written tensor by tensor."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter, LlamaFileType, dequantize, quantize

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.export.gguf_layouts import LAYOUTS, Layout
from neuronmoe_plugins.export.gguf_tokenizer import add_tokenizer
from neuronmoe_plugins.export.mixture import Mixture
from neuronmoe_plugins.export.sources import Source
from neuronmoe_plugins.progress import track

FILE = "model.gguf"
DTYPES = {
    "float32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "bfloat16": (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
    "float16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
}
# In float32 whatever the others are, as vectors are: llama.cpp computes with no other there.
KEPT_IN_FLOAT32 = "ffn_gate_inp"


@dataclass(frozen=True)
class GgufExport:
    """What a file will hold.

    Attributes:
        layout: Its architecture.
        tensors: By name.
        dtype: Of `DTYPES`.
    """

    layout: Layout
    tensors: dict[str, Source]
    dtype: str

    def type_of(self, name: str) -> GGMLQuantizationType:
        """That of a tensor."""
        if len(self.tensors[name].shape) == 1 or KEPT_IN_FLOAT32 in name:
            return GGMLQuantizationType.F32
        return DTYPES[self.dtype][0]

    def num_bytes(self, name: str) -> int:
        """Those of a tensor."""
        block, size = GGML_QUANT_SIZES[self.type_of(name)]
        return math.prod(self.tensors[name].shape) // block * size


def plan_gguf(mixture: Mixture, dtype: str) -> GgufExport:
    """The smallest of llama.cpp's architectures that is exact.

    Args:
        mixture: What it shall hold.
        dtype: Of `DTYPES`.

    Raises:
        UserError: if none can, with the reasons; or if rows cannot be packed into blocks of the dtype.
    """
    family, refusals = mixture.base.config.model_type, {each: each.refusal(mixture) for each in LAYOUTS}
    exact = [GgufExport(each, each.file_tensors(mixture), dtype) for each in LAYOUTS if refusals[each] is None]
    if not exact:
        told = [f"{each.architecture}: {refusals[each]}" for each in LAYOUTS if family in each.families]
        if not told:
            known = sorted({name for each in LAYOUTS for name in each.families})
            told = [f"known are those for {', '.join(known)}, and the base is {family}"]
        raise UserError(
            f"{mixture.place}: no architecture of llama.cpp holds it exactly ({'; '.join(told)}); take --as neuronmoe, "
            "which transformers and vLLM run where this package is installed, or run it as an adapter"
        )
    planned = min(exact, key=lambda each: sum(map(each.num_bytes, each.tensors)))
    for name, source in planned.tensors.items():
        block = GGML_QUANT_SIZES[planned.type_of(name)][0]
        if source.shape[-1] % block:
            raise UserError(
                f"--dtype {dtype} packs {block} numbers of a row together, and rows of {name} have "
                f"{source.shape[-1]}; take another"
            )
    return planned


def write_gguf(planned: GgufExport, mixture: Mixture, folder: Path, name: str, progress: bool) -> bool:
    """Write the file `FILE`, one tensor in memory at a time.

    Args:
        planned: What it holds.
        mixture: The adapter and its base.
        folder: Where to.
        name: What the model is called in it.
        progress: Show a progress bar on standard error.

    Returns:
        Whether a tensor had to be rounded.

    Raises:
        UserError: if there is no tokenizer that llama.cpp computes like.
    """
    writer = GGUFWriter(folder / FILE, planned.layout.architecture)
    writer.add_name(name)
    writer.add_file_type(DTYPES[planned.dtype][1])
    writer.add_quantization_version(2)
    for key, value in planned.layout.metadata(mixture).items():
        add: Any = writer.add_uint32 if isinstance(value, int) else writer.add_float32
        add(f"{planned.layout.architecture}.{key}", value)
    home, flag = mixture.tokenizer_home
    add_tokenizer(writer, home, flag, mixture.base.config.vocab_size)
    for each, source in planned.tensors.items():
        kind = planned.type_of(each)
        writer.add_tensor_info(each, source.shape, np.dtype(np.float32), planned.num_bytes(each), kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    is_rounded = False
    for each in track(list(planned.tensors), "writing", progress):
        given, kind = planned.tensors[each].read().to(torch.float32).contiguous().numpy(), planned.type_of(each)
        written = quantize(given, kind)
        writer.write_tensor_data(written)
        is_rounded = is_rounded or not np.array_equal(dequantize(written, kind), given)
    writer.close()
    return is_rounded
