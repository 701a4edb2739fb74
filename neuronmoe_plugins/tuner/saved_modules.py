"""What an adapter trains and saves beside its mixtures: whole modules, such as a head, and rows of the embedding.

PEFT wraps them; here is what `moe` refuses of them, what of them an adapter's file holds, and how they stay frozen.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, cast

import torch
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

# PEFT adds all of them for a model with a task's head, which has one.
HEADS = frozenset({"classifier", "score", "qa_outputs"})
# Parts of the names of an adapter's parameters.
MIXTURE, WHOLE, ROWS = ".moe_", ".modules_to_save.", ".trainable_tokens_delta."
# How PEFT's name for them in a file ends, behind that of the module.
ROWS_IN_FILE = f".token_adapter{ROWS}".removesuffix(".")
# Where PEFT keeps the base's own module.
OF_BASE = ("original_module", "base_layer")

TokenIndices = list[int] | dict[str, list[int]]


def check_fields(modules_to_save: Any, trainable_token_indices: Any) -> list[str] | None:
    """Check the two fields of a configuration by themselves.

    Returns:
        `modules_to_save` as a list, or None.

    Raises:
        ValueError: naming the field.
    """
    names = modules_to_save
    if names is not None and (not isinstance(names, list | tuple | set) or not all(isinstance(n, str) for n in names)):
        raise ValueError(f"modules_to_save must be a list of names of modules; got {names!r}")
    if trainable_token_indices is not None:
        by_module = trainable_token_indices
        for indices in by_module.values() if isinstance(by_module, dict) else [by_module]:
            if not isinstance(indices, list) or not indices or any(type(i) is not int or i < 0 for i in indices):
                raise ValueError(
                    "trainable_token_indices must be a list of tokens' indices, or one for each module's name; got "
                    f"{trainable_token_indices!r}"
                )
            if len(set(indices)) < len(indices):
                raise ValueError("trainable_token_indices has an index twice")
    return None if names is None else list(names)


def check_modules(config: Any, model: nn.Module, mlps: Collection[str]) -> None:
    """Check both fields of a configuration against a model, without or with mixtures in it.

    Args:
        config: The configuration.
        model: The base model.
        mlps: Names of the MLPs that become mixtures.

    Raises:
        ValueError: naming the field, and what the model lacks or what is part of a mixture.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    tokens = config.trainable_token_indices or {}
    by_module = tokens if isinstance(tokens, dict) else {_name_of(model.get_input_embeddings(), modules): tokens}  # type: ignore[operator]
    whole = _find("modules_to_save", config.modules_to_save or [], modules)
    rows = _find("trainable_token_indices", by_module, modules)
    for field, found in (("modules_to_save", whole), ("trainable_token_indices", rows)):
        for target, names in found.items():
            for mlp in (mlp for mlp in mlps for name in names if _overlap(name, mlp)):
                raise ValueError(
                    f"{field} names {target}, but {mlp} becomes a mixture, whose experts are trained and saved "
                    "already: remove it"
                )
            if any(not weight.is_floating_point() for name in names for weight in modules[name].parameters()):
                raise ValueError(f"{field} names {target}, which is quantised: load the base model unquantised")
    for target, names in rows.items():
        if any(_overlap(name, other) for name in names for others in whole.values() for other in others):
            raise ValueError(f"modules_to_save trains {target} whole, of which trainable_token_indices names some rows")
    for target, indices in by_module.items():
        for index in indices:
            _check_index(index, target, modules[rows[target][0]])
    if rows:
        _check_tied(model, modules, {name for names in whole.values() for name in names}, rows)


def _find(field: str, targets: Iterable[str], modules: Mapping[str, nn.Module]) -> dict[str, list[str]]:
    """The names of the modules that each target stands for, as PEFT finds them."""
    found = {target: [name for name in modules if name.endswith(target)] for target in targets}
    for target, names in found.items():
        if not names and not (field == "modules_to_save" and target in HEADS):
            raise ValueError(f"{field} names {target}, which {type(modules['']).__name__} does not have")
    return found


def _check_tied(model: Any, modules: Mapping[str, nn.Module], whole: set[str], rows: dict[str, list[str]]) -> None:
    """A tied head follows the embedding's rows, so that it has none of its own, and is not trained whole."""
    by_name = {name: target for target, names in rows.items() for name in names}
    embedding = _name_of(model.get_input_embeddings(), modules)
    head = model.get_output_embeddings() if embedding in by_name else None
    if head is None or not model.config.get_text_config().tie_word_embeddings:
        return
    name = _name_of(head, modules)
    if name in whole or by_name.get(name, by_name[embedding]) != by_name[embedding]:
        raise ValueError(
            f"trainable_token_indices: {name} is tied to {embedding} and follows its rows: name the rows of "
            f"{embedding} alone"
        )


def _check_index(index: int, name: str, module: Any) -> None:
    module = module.original_module if isinstance(module, AuxiliaryTrainingWrapper) else module
    rows = int(getattr(module, "num_embeddings", 0) or getattr(module, "out_features", 0))
    if index >= rows:
        raise ValueError(f"trainable_token_indices has token {index}, but {name} has {rows} rows")


def _name_of(module: nn.Module, modules: Mapping[str, nn.Module]) -> str:
    return next(name for name, other in modules.items() if other is module)


def _overlap(one: str, other: str) -> bool:
    """Whether one module is the other, or lies in it."""
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


def is_added(name: str) -> bool:
    """Whether a parameter of this name in a model is an adapter's."""
    return any(part in name for part in (MIXTURE, WHOLE, ROWS))


def wrappers(model: nn.Module, adapter_name: str) -> Iterator[tuple[str, Any]]:
    """Name and wrapper of every module that an adapter trains and saves, or has rows of."""
    for name, module in model.named_modules():
        if isinstance(module, AuxiliaryTrainingWrapper) and adapter_name in module._adapters:
            yield name, module


def tensors_in_file(
    model: nn.Module, adapter_name: str, modules: Collection[str] | None = None
) -> dict[str, tuple[str, torch.Tensor]]:
    """Name of a tensor in the adapter's file -> its name in the model, and the tensor there; of some modules alone."""
    found: dict[str, tuple[str, torch.Tensor]] = {}
    for name, wrapper in wrappers(model, adapter_name):
        if modules is not None and not name.endswith(tuple(modules)):
            continue
        values = wrapper.state_dict(keep_vars=True)
        for in_file, in_model in wrapper.adapter_state_dict_load_map(adapter_name).items():
            found[f"{name}.{in_file}"] = f"{name}.{in_model}", values[in_model]
    return found


def replaced_weights(given: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> list[str]:
    """Names of weights that a model has, and a file with other values, as PEFT adds those of a larger vocabulary."""
    pairs = {name: (own[name], tensor) for name, tensor in given.items() if name in own}
    comparable = {name: pair for name, pair in pairs.items() if pair[0].shape == pair[1].shape and not pair[0].is_meta}
    return sorted(name for name, (old, new) in comparable.items() if not old.equal(new.to(old)))


def keep_frozen(model: nn.Module, adapter_names: Collection[str]) -> None:
    """Freeze the base's own part of what adapters save beside their mixtures, and some adapters' part of it.

    PEFT thaws the one where another adapter is active or all are disabled, and the other whenever one is activated.

    Args:
        model: The base model, with the adapters in it.
        adapter_names: The adapters that are not trained.
    """
    for module in list(model.modules()):
        if isinstance(module, AuxiliaryTrainingWrapper | TrainableTokensLayer):
            if not isinstance(module, _Frozen):
                module.__class__ = type(type(module).__name__, (_Frozen, type(module)), {})
                vars(module)["frozen_names"] = set(OF_BASE)
            cast(_Frozen, module).frozen_names |= {*adapter_names}
            cast(_Frozen, module).freeze()


class _Frozen:
    """Before a class of PEFT's: it keeps parameters frozen, whatever activates them."""

    frozen_names: set[str]

    def freeze(self) -> None:
        for name, parameter in cast(nn.Module, self).named_parameters():
            if not self.frozen_names.isdisjoint(name.split(".")):
                parameter.requires_grad_(False)

    def update(self, *args: Any, **kwargs: Any) -> None:
        super().update(*args, **kwargs)  # type: ignore[misc]
        self.freeze()

    def set_adapter(self, *args: Any, **kwargs: Any) -> None:
        super().set_adapter(*args, **kwargs)  # type: ignore[misc]
        self.freeze()

    def enable_adapters(self, enabled: bool) -> None:
        super().enable_adapters(enabled)  # type: ignore[misc]
        self.freeze()


def unwrap(model: nn.Module) -> None:
    """Give the base model its own modules back."""
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if isinstance(module, AuxiliaryTrainingWrapper):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module.original_module)
