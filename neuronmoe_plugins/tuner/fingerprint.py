"""Tells a base model from another of the same shape, such as its chat version, by some of its weights.

Values and no hash: a base is loaded in float32 by one program and in bfloat16 by the next.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.feed_forward import FeedForward, without_adapter
from neuronmoe_plugins.models import name_new_tokens
from neuronmoe_plugins.tuner.experts.weights import weights_are_loaded, whole_weights

# Of a weight, spread over its rows and columns.
VALUES = 8
# bfloat16 rounds by 0.2 %, twice where the adapter was made in another dtype; float16 has steps of 6e-8 at zero.
RELATIVE, ABSOLUTE = 0.005, 1e-7
COMPARABLE = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

Fingerprint = dict[str, str]
"""Name of a weight in the base model -> some of its values; empty where nothing can be read."""
Reader = Callable[[str], Any]
"""Name of a weight -> the weight: a tensor, or a slice of a safetensors file; None where there is none."""


class OtherBaseError(UserError, UserWarning):
    """An adapter is loaded on another base model than the one that it was made on: a warning that can be raised."""


def fingerprint(model: nn.Module, mlps: Mapping[int, FeedForward], read: Reader | None = None) -> Fingerprint:
    """Read a base model's fingerprint: of all linear layers of its first, middle and last decoder layers.

    Under ZeRO-3 every process has to call it; each weight is gathered by itself.

    Args:
        model: The base model, with adapters or without.
        mlps: Decoder layer -> its MLP.
        read: Reads the weights; unless given, they are the model's.
    """
    read, found = read or partial(read_weight, model), {}
    for layer in sorted({0, len(mlps) // 2, len(mlps) - 1}):
        block = mlps[layer].name.rpartition(".")[0]
        for name in sorted(_linear_layers(model.get_submodule(block), block)):
            values = _values(read(f"{name}.weight"))
            if values is not None:
                found[f"{name}.weight"] = " ".join(f"{value:.5g}" for value in values)
    return found


def read_weight(model: nn.Module, name: str) -> torch.Tensor | None:
    """A weight of the base model by its name there, whatever adapters are around it; None if it is not there."""
    module: Any = model
    *path, attribute = name.split(".")
    for part in path:
        module = _unwrapped(getattr(module, part, None))
    weight = getattr(module, attribute, None)
    if weight is None or not weights_are_loaded():
        return None
    with whole_weights(module):
        return weight.detach().clone() if hasattr(weight, "ds_id") else weight.detach()


def other_weights(saved: Mapping[str, str], read: Reader) -> list[str] | None:
    """Compare a fingerprint with a base model.

    Args:
        saved: The fingerprint.
        read: Reads the weights.

    Returns:
        Names of the weights that differ by more than rounding; None if none could be compared, as in a quantised base.
    """
    pairs = {name: (values.split(), _values(read(name))) for name, values in saved.items()}
    compared = {name: (map(float, old), new) for name, (old, new) in pairs.items() if new is not None}
    different = [
        name
        for name, (old, new) in compared.items()
        if not all(math.isclose(*pair, rel_tol=RELATIVE, abs_tol=ABSOLUTE) for pair in zip(old, new, strict=False))
    ]
    return different if compared else None


def require_base(what: str, saved: Mapping[str, str] | None, used: str, read: Reader) -> bool:
    """Compare a fingerprint with the base model `used`; whether there was anything to compare.

    Raises:
        UserError: if the weights are others; it begins with `what`, such as "the adapter is one of another model".
    """
    different = other_weights(saved or {}, read)
    if different:
        raise UserError(f"{what}, {_has_other_weights(used, different)}")
    return different is not None


def _has_other_weights(used: str, weights: list[str]) -> str:
    return (
        f"but {used} has other weights (in {weights[0]}): name the adapter's base, or remove base_fingerprint from its "
        "adapter_config.json to use it on this one all the same"
    )


def check_base(model: nn.Module, saved: Mapping[str, str], adapter_name: str, named: str | None) -> None:
    """Warn (`OtherBaseError`) where an adapter's file is loaded into another model than the one that it was made on.

    Args:
        model: The base model, with the adapter.
        saved: The fingerprint in the adapter's configuration.
        adapter_name: Name of the adapter.
        named: The base model that the configuration names.
    """
    different = other_weights(saved, partial(read_weight, model))
    if different:
        used = getattr(model, "name_or_path", "") or "the model"
        made_on = named if named and named != used else "another model"
        line = f"the adapter {adapter_name!r} is one of {made_on}, {_has_other_weights(used, different)}"
        warnings.warn(OtherBaseError(line), stacklevel=2)


def check_new_tokens(model: Any, config: Any) -> str:
    """By which tokens a base model's vocabulary was extended.

    Raises:
        UserError: if the configuration of an adapter that is put into it says others.
    """
    used = getattr(model, "name_or_path", "") or "the model"
    named = config.base_model_name_or_path
    other = named if named and named != used else "another model"
    return require_tokens(f"it is one of {other}", config.made_with_tokens, used, getattr(model, "config", None))


def require_tokens(what: str, made_with: str | None, used: str, config: Any) -> str:
    """Compare the new tokens that an adapter was made with with those of the base model `used`, and say these.

    Raises:
        UserError: if they are others; it begins with `what`, such as "the adapter is one of another model".
    """
    found = name_new_tokens(config)
    if made_with not in (None, found):
        raise UserError(
            f"{what}, whose new tokens are {made_with}, but those of {used} are {found}: name the adapter's base"
        )
    return found


@contextmanager
def refused_on_other_base() -> Iterator[None]:
    """Raise `OtherBaseError`, a `UserError`, instead of warning of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", OtherBaseError)
        yield


def _linear_layers(module: nn.Module, name: str) -> Iterator[str]:
    """Names of the modules that have a matrix, as they were before there were adapters."""
    for child_name, child in module.named_children():
        base = _unwrapped(child)
        if getattr(getattr(base, "weight", None), "ndim", 0) == 2 or hasattr(getattr(base, "weight", None), "ds_id"):
            yield f"{name}.{child_name}"
        yield from _linear_layers(base, f"{name}.{child_name}")


def _unwrapped(module: Any) -> Any:
    base = without_adapter(module)
    return getattr(base, "_modules", {}).get("original_module", base)


def _values(weight: Any) -> list[float] | None:
    """Some values of a matrix; None if it is not there, sharded, or holds something else than its values."""
    is_in_file = hasattr(weight, "get_shape")
    if not is_in_file and (type(weight) is not torch.Tensor or weight.is_meta):
        return None
    shape = weight.get_shape() if is_in_file else weight.shape
    if len(shape) != 2 or not min(shape):
        return None
    places = [(i * shape[0] // VALUES, (i * shape[1] // VALUES + i) % shape[1]) for i in range(VALUES)]
    picked = torch.stack([weight[row : row + 1][0, column] for row, column in places])
    return picked.double().tolist() if picked.dtype in COMPARABLE else None
