"""Models and adapters, folders here or names on the Hugging Face Hub: whether there can be such a one, and its files.

What loads them would ask the hub for every one of their files, for up to a minute, also for a path that was mistyped.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from neuronmoe_plugins.errors import UserError, one_line
from neuronmoe_plugins.files import digest, read_json, write_json
from neuronmoe_plugins.reading import read_json_object

MODEL, ADAPTER = ("config.json",), ("adapter_config.json",)
ADAPTER_WEIGHTS = "adapter_model.safetensors"
TOKENIZER = ("tokenizer_config.json", "*token*", "*vocab*", "*merges*", "*.model")
"""Files by which a folder is known, or patterns of their names; it has one of them."""
NEW_TOKENS = "neuronmoe_vocabulary"
"""Key of the configuration of a model whose vocabulary this package has extended, see `new_token_rows`."""
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
SECONDS = 3
OTHER_HUBS = ("USE_MODELSCOPE_HUB", "USE_OPENMIND_HUB")
"""By which LLaMA-Factory takes names of other hubs."""


def require_model(flag: str, name: str, files: Sequence[str] = MODEL, *, is_needed: bool = True) -> None:
    """Find out at once whether a model or an adapter is there; nothing heavy is imported.

    The hub is asked once, and only for what neither a folder nor the hub's cache has.

    Args:
        flag: What names it, as in `--model`.
        name: A folder, or a name on the hub.
        files: What a folder has at least one of, `MODEL`, `ADAPTER` or `TOKENIZER`.
        is_needed: Whether it is loaded now; for later, a hub that cannot be asked is no reason to refuse a name.

    Raises:
        UserError: if it cannot be there.
    """
    folder = Path(name)
    if folder.is_dir():
        if not any(path.is_file() for file in files for path in folder.glob(file)):
            hint = "; it is an adapter, which --adapter names" if (folder / ADAPTER[0]).is_file() else ""
            hint = hint or ("; put the model's tokenizer files there" if files is TOKENIZER else "")
            raise UserError(f"{flag} {name} has no {files[0]}{hint}")
    elif folder.exists():
        raise UserError(f"{flag} {name} is a file; name the folder that has it")
    elif not HUB_NAME.fullmatch(name):
        raise UserError(f"{flag} {name} does not exist, and is no name on the Hugging Face Hub (OWNER/NAME)")
    else:
        _require_on_hub(flag, name, files[0], is_needed)


def new_tokens(first: int, tokens: Sequence[str], modules: Sequence[str], also: Sequence[int] = ()) -> dict[str, Any]:
    """What the configuration of a model with new tokens says under `NEW_TOKENS`.

    Args:
        first: Id of the first.
        tokens: What they stand for, one behind the other.
        modules: Names of the modules that have rows of their own for them, the embedding first.
        also: Ids of older tokens whose rows are to be trained with theirs.
    """
    told = {"first": first, "tokens": len(tokens), "modules": list(modules), "hash": digest([*tokens])[:8]}
    return told | ({"also": sorted(also)} if also else {})


def name_new_tokens(config: Any) -> str:
    """By which a model's new tokens are known from others: "none", or as in "60 from 401 on (1a2b3c4d)".

    The size of the embedding tells less: lm-eval cuts off rows that no token has.

    Args:
        config: The model's configuration.
    """
    told = getattr(config, NEW_TOKENS, None)
    return "none" if told is None else f"{told['tokens']} from {told['first']} on ({told['hash']})"


def new_token_rows(config: Any) -> list[int] | dict[str, list[int]] | None:
    """The rows of a model's new tokens, and of those to be trained with them, as PEFT's `trainable_token_indices`.

    None if it has no new tokens.

    Args:
        config: The model's configuration, one of transformers.
    """
    told = getattr(config, NEW_TOKENS, None)
    if told is None:
        return None
    rows = [*told.get("also", ()), *range(told["first"], told["first"] + told["tokens"])]
    # A tied head follows the embedding.
    return rows if len(told["modules"]) == 1 else dict.fromkeys(told["modules"], rows)


def cached_config(name: str) -> Path | None:
    """The file config.json of a model, if it is a folder or in the hub's cache."""
    if Path(name).is_dir():
        return Path(name) / MODEL[0]
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, MODEL[0])
    return Path(found) if isinstance(found, str) else None


def _require_on_hub(flag: str, name: str, file: str, is_needed: bool) -> None:
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.utils import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    if not is_needed and any(os.environ.get(name, "0").lower() in ("1", "true", "y") for name in OTHER_HUBS):
        return
    if (Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}").is_dir():
        return
    missing = f"{flag} {name} does not exist: there is no such folder, nor is it in the hub's cache, "
    try:
        if constants.HF_HUB_OFFLINE:
            raise ConnectionError("HF_HUB_OFFLINE is set")
        get_hf_file_metadata(hf_hub_url(name, file), timeout=SECONDS)
    except GatedRepoError:
        pass  # it is there, and what loads it says what is wrong
    except RepositoryNotFoundError as error:
        raise UserError(f"{missing}nor on the hub (a private one needs `hf auth login`)") from error
    except HfHubHTTPError:
        pass
    except Exception as error:  # of the network, by whichever library the hub's uses
        if is_needed:
            raise UserError(f"{missing}and the hub cannot be asked ({one_line(error)})") from error


def local_file(name: str, file: str) -> Path | None:
    """A file of a folder or of a repository on the hub; None if it has no such file."""
    if Path(name).is_dir():
        return Path(name, file) if Path(name, file).is_file() else None
    from transformers.utils import cached_file

    quiet = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    found = cached_file(name, file, **quiet)
    return None if found is None else Path(found)


def read_adapter_config(path: Path) -> dict[str, Any]:
    """The configuration of a `moe` adapter; raises `UserError` if the file holds none."""
    config = read_json_object(path, "name the folder of an adapter")
    if config.get("peft_type") != "MOE":
        raise UserError(f"{path} is not the configuration of a moe adapter: its peft_type is not MOE")
    return config


def adapter_weights(folder: Path) -> Any:
    """The open safetensors file of an adapter, as of `open_weights`."""
    path = folder / ADAPTER_WEIGHTS
    if not path.is_file():
        raise UserError(f"{path} is missing; adapters in adapter_model.bin (pickle) are not read")
    return open_weights(path)


def open_weights(path: Path) -> Any:
    """An open safetensors file, of which parts can be read; raises `UserError` if it cannot be."""
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read: {one_line(error)}") from error


def write_adapter(folder: Path, tensors: Mapping[str, Any], config: Mapping[str, Any], **metadata: str) -> None:
    """Write an adapter's two files; the metadata is that of the weights."""
    from safetensors.torch import save_file

    save_file(dict(tensors), folder / ADAPTER_WEIGHTS, metadata={"format": "pt", **metadata})
    write_json(folder / ADAPTER[0], config)


def weight_in_files(find: Callable[[str], Path | None], name: str) -> Any:
    """A weight in a model's safetensors files, of which parts can be read; None if it is not there.

    Args:
        find: From the name of one of the model's files to where it is; None if it has none of that name.
        name: Of the weight.

    Raises:
        UserError: if the file cannot be read.
    """
    index = find("model.safetensors.index.json")
    shards = {} if index is None else read_json(index)["weight_map"]
    file = find(shards.get(name, "model.safetensors"))
    if file is None:
        return None
    tensors = open_weights(file)
    return tensors.get_slice(name) if name in tensors.keys() else None  # noqa: SIM118
