"""`neuronmoe graft`: an adapter that was trained on one model, put on another that was tuned from it, such as its chat.

Every expert gets the difference of the two models' MLPs, as DeltaMoE's do (arXiv 2605.18083), a chat vector (arXiv
2310.04799) for each; the routers stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.export.mixture import Mixture
from neuronmoe_plugins.export.request import GraftRequest
from neuronmoe_plugins.export.sources import BaseModel
from neuronmoe_plugins.files import new_directory, writing
from neuronmoe_plugins.models import TOKENIZER, local_file, name_new_tokens, write_adapter
from neuronmoe_plugins.neurons.loading import load_tokenizer
from neuronmoe_plugins.progress import track


@dataclass(frozen=True)
class Graft:
    """What was changed.

    Attributes:
        experts: How many experts, beside the base MLPs, there are.
        is_low_rank: Whether they are deltas, which stay as they are, since they are relative to the base.
    """

    experts: int
    is_low_rank: bool


def graft(request: GraftRequest, progress: bool = False) -> Graft:
    """Write an adapter for another base model of the same shapes.

    An expert E on the base W becomes W' + (E - W), computed in float32, with W' of the other base: a copy that was
    never trained becomes a copy of W', bit by bit. So do the rows of new tokens. A low-rank expert W + s B A becomes
    W' + s B A without a change.

    Args:
        request: What is asked for.
        progress: Show a progress bar on standard error.

    Raises:
        UserError: if the models differ in family, sizes or tokens, or the adapter is not one of `--from`.
    """
    mixture = Mixture(request.adapter, request.base, ("--adapter", "--from"))
    target = BaseModel("--to", request.target)
    _check_fit(mixture.base, target)
    trained = mixture.trained_weights()
    tensors: dict[str, torch.Tensor] = {}
    for name in track(sorted(mixture.files.names()), "grafting", progress):
        tensor = mixture.files.source(name).read()
        if name in trained:
            old, new = (trained[name].of(model.files) for model in (mixture.base, target))
            # Where the experts are coarser than the base's file, they started from what it was rounded to.
            tensor = (new + (tensor.float() - old.to(tensor.dtype).float())).to(tensor.dtype)
        tensors[name] = tensor
    config = mixture.config_in_file | {
        "base_model_name_or_path": request.target,
        "base_fingerprint": target.fingerprint(),
        "revision": None,
    }
    with writing(f"--output {request.output}"), new_directory(request.output) as folder:
        write_adapter(folder, tensors, config)
    plans = mixture.plans.values()
    return Graft(sum(plan.num_experts - 1 for plan in plans), mixture.config.expert_rank is not None)


def _check_fit(base: BaseModel, target: BaseModel) -> None:
    """The two models have the same tensors, and the same tokens."""
    one, other = base.config, target.config
    if one.model_type != other.model_type:
        raise UserError(f"{target.place} is a {other.model_type} model, but {base.place} is a {one.model_type} one")
    mine, others = name_new_tokens(one), name_new_tokens(other)
    if mine != others:
        raise UserError(
            f"{target.place} has other tokens than {base.place}: its new ones are {others} instead of {mine}; extend "
            "the one by `neuronmoe vocabulary` as the other was"
        )
    shapes = {name: base.files.shape(name) for name in base.names}
    for name in target.names:
        shape = target.files.shape(name)
        if shapes.get(name, shape) != shape:
            raise UserError(
                f"{target.place} is no model tuned from {base.place}: {name} is {shape} instead of {shapes[name]}"
            )
    if different := sorted(set(base.mlp_layer) ^ set(target.mlp_layer)):
        raise UserError(f"{target.place} is no model tuned from {base.place}: only one of them has {different[0]}")
    if all(local_file(model.name, TOKENIZER[0]) for model in (base, target)):
        ids = load_tokenizer(base.name, "--from").get_vocab()
        other_ids = load_tokenizer(target.name, "--to").get_vocab()
        for token in sorted(ids.keys() & other_ids.keys()):
            if ids[token] != other_ids[token]:
                raise UserError(
                    f"{target.place} has other tokens than {base.place}: {token!r} is {other_ids[token]} instead of "
                    f"{ids[token]}; take a model with the same vocabulary"
                )
