"""Names of models and adapters, each a folder here or a name on the Hugging Face Hub: whether there can be such a one.

What loads them would ask the hub for every one of their files, for up to a minute, also for a path that was mistyped.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from neuronmoe_plugins.errors import UserError, one_line

MODEL, ADAPTER = ("config.json",), ("adapter_config.json",)
TOKENIZER = ("tokenizer_config.json", "*token*", "*vocab*", "*merges*", "*.model")
"""Files by which a folder is known, or patterns of their names; it has one of them."""
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
