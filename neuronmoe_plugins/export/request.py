"""What `neuronmoe export` and `neuronmoe graft` are told, checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.files import new_folder
from neuronmoe_plugins.models import ADAPTER, require_model
from neuronmoe_plugins.options import check_options, one_of, option


def _adapter(flag: str, name: str) -> None:
    require_model(flag, name, ADAPTER)


GGUF, PACKED = "gguf", "q8_0"


@dataclass(frozen=True)
class ExportRequest:
    """The options of an export.

    Raises:
        UserError: for a value that cannot be used.
    """

    adapter: str = option("Folder or hub name of a trained adapter.", metavar="ADAPTER", check=_adapter)
    output: Path = option("Folder for the checkpoint.", check=new_folder)
    container: str = option(
        "Its architecture: qwen2_moe, qwen3_moe or ernie4_5_moe, auto for the cheapest of them that is exact; "
        "neuronmoe, which holds any list without padding and needs this package where it runs; or gguf, a file for "
        "llama.cpp.",
        "auto",
        flag="as",
        check=one_of("auto", "qwen2_moe", "qwen3_moe", "ernie4_5_moe", "neuronmoe", GGUF),
    )
    model: str | None = option("The base model.", None, shown="the one that the adapter names", check=require_model)
    dtype: str | None = option(
        "float32, bfloat16 or float16; as gguf also q8_0, with 8 bits a weight.",
        None,
        shown="the base model's",
        check=one_of("float32", "bfloat16", "float16", PACKED),
    )
    text: str | None = option("On which its logits are compared with the adapter's.", None, shown="random tokens")
    device: str | None = option(
        "Where they are computed, in float32: cpu or cuda:0.", None, shown="CUDA if there is any"
    )

    def __post_init__(self) -> None:
        check_options(self)
        if self.container != GGUF and self.dtype == PACKED:
            raise UserError(f"--dtype {PACKED} is one of --as {GGUF} alone; take bfloat16")
        if self.container == GGUF and (self.text is not None or self.device is not None):
            raise UserError(
                f"--text and --device are for comparing logits, and --as {GGUF} compares none: leave them out"
            )


@dataclass(frozen=True, kw_only=True)
class GraftRequest:
    """The options of a graft.

    Raises:
        UserError: for a value that cannot be used.
    """

    adapter: str = option("Folder or hub name of a trained adapter.", check=_adapter)
    base: str | None = option(
        "The base model that it was trained on.",
        None,
        flag="from",
        shown="the one that the adapter names",
        check=require_model,
    )
    target: str = option(
        "The model that was tuned from that one, such as its chat version.", flag="to", check=require_model
    )
    output: Path = option("Folder for the adapter on the other model.", check=new_folder)

    def __post_init__(self) -> None:
        check_options(self)
