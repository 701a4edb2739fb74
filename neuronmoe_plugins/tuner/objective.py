"""What is added to the base model's call: routing is recorded, and the mixture's losses join the model's own."""

from __future__ import annotations

import inspect
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from neuronmoe_plugins.tuner.config import LOSS_COEFFICIENTS, MoeConfig
from neuronmoe_plugins.tuner.groups import Groups, keep_in_cache
from neuronmoe_plugins.tuner.inputs import LABELS_TOTAL, MIXTURE_LABELS, MixtureInputs
from neuronmoe_plugins.tuner.losses import IGNORED
from neuronmoe_plugins.tuner.metrics import RoutingMetrics, RoutingShares
from neuronmoe_plugins.tuner.routing import ForwardContext, ForwardPass, LayerRouting
from neuronmoe_plugins.tuner.terms import mixture_terms


class Objective:
    """Hooks on the base model's call that record routing and add losses.

    In training, `outputs.loss` becomes `lm + sum of share * coefficient * loss` over the mixture's losses, each a mean
    over the mixture layers. `share` is this micro-batch's part of the items that the loss is a mean of, labelled tokens
    for the balance loss; see `neuronmoe_plugins.tuner.inputs`. Hooks reach every way in which PEFT and its hosts call
    the model. A model that gets no labels returns no loss: who computes one then passes them as `mixture_labels`, and
    adds `added` itself.

    Attributes:
        context: Shared with the mixture layers.
        metrics: Means for logs.
        shares: Routing shares under measurement, if any.
        added: What the last training forward added to the loss, a scalar with its graph; None if nothing.
        over_processes: Whether all processes of the default group run each training forward together, on parts of one
            batch, and add up their losses; set by who trains so. The balance loss then is that of the whole batch.
    """

    def __init__(self, model: nn.Module) -> None:
        self.context = ForwardContext()
        self.metrics = RoutingMetrics()
        self.shares: RoutingShares | None = None
        self.added: torch.Tensor | None = None
        self.over_processes = False
        self._names = tuple(inspect.signature(model.forward).parameters)
        self._handles: list[RemovableHandle] = [
            model.register_forward_pre_hook(self._before_forward, with_kwargs=True),
            model.register_forward_hook(self._after_forward, with_kwargs=True),
        ]
        if hasattr(model, "generate"):
            vars(model)["generate"] = MethodType(_generate, model)

    @classmethod
    def attach(cls, model: nn.Module) -> Objective:
        """The model's objective; made at its first adapter, shared by the later ones."""
        if "moe_objective" not in vars(model):
            vars(model)["moe_objective"] = cls(model)
        objective: Objective = vars(model)["moe_objective"]
        return objective

    def detach(self, model: nn.Module) -> None:
        """Take the hooks, and this object, off the model."""
        for handle in self._handles:
            handle.remove()
        del vars(model)["moe_objective"]
        vars(model).pop("generate", None)

    def _before_forward(self, model: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if getattr(model, "_is_replica", False):
            raise ValueError(DATA_PARALLEL_REFUSED)
        if kwargs.get("adapter_names") is not None:
            raise ValueError(ADAPTER_NAMES_REFUSED)
        given = MixtureInputs.take(kwargs)
        inputs = self._arguments(args, kwargs)
        routes_groups = any(config.group_nums for config in _configs(model).values() if isinstance(config, MoeConfig))
        groups = self.context.groups(inputs.get("past_key_values")) if routes_groups else Groups()
        recording = model.training or self.shares is not None
        forward = ForwardPass(given, recording, {}, inputs.get("attention_mask"), groups, _returns_tuple(model, kwargs))
        self.context.start(forward)
        return args, kwargs | {"return_dict": True} if forward.returns_tuple else kwargs

    def _after_forward(self, model: nn.Module, args: Any, kwargs: dict[str, Any], outputs: Any) -> Any:
        forward = self.context.current
        layers = self.context.stop()
        cache = getattr(outputs, "past_key_values", None)
        if forward.groups and cache is not None:
            keep_in_cache(cache, forward.groups)
        if layers:
            self._record(model, forward, layers, self._arguments(args, kwargs), outputs)
        return outputs.to_tuple() if forward.returns_tuple else outputs

    def _record(
        self,
        model: nn.Module,
        forward: ForwardPass,
        layers: dict[int, LayerRouting],
        arguments: dict[str, Any],
        outputs: Any,
    ) -> None:
        """Measure the routing of a forward pass, and in training add its losses to the outputs."""
        inputs = MixtureInputs.read(forward.given, forward.attention_mask)
        if self.shares is not None:
            self.shares.add(layers, inputs.token_mask)
        if model.training and torch.is_grad_enabled():
            config = _configs(model)[next(iter(layers.values())).adapter_name]
            self._add_losses(config, layers, inputs, {**arguments, **forward.given}, outputs)

    def _arguments(self, args: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments of a model call by name."""
        return {**dict(zip(self._names, args, strict=False)), **kwargs}

    def _add_losses(
        self,
        config: MoeConfig,
        layers: dict[int, LayerRouting],
        inputs: MixtureInputs,
        arguments: dict[str, Any],
        outputs: Any,
    ) -> None:
        self.added = None
        loss, labels = getattr(outputs, "loss", None), arguments.get("labels")
        if loss is None or labels is None:
            labels = arguments.get(MIXTURE_LABELS)
        _check_losses_possible(config, layers, labels, inputs)
        if labels is None:
            return
        items = (labels != IGNORED).sum()
        total_items = arguments.get(LABELS_TOTAL, arguments.get("num_items_in_batch"))
        total_items = items if total_items is None else total_items
        device = labels.device if loss is None else loss.device
        if loss is not None:
            self.metrics.add("lm_loss", loss * total_items, items)
        self.metrics.add_routing(layers, inputs.token_mask, inputs.old_tokens)
        for term in mixture_terms(config, layers, inputs, labels, total_items, self.over_processes):
            self.metrics.add(term.name, term.value * term.items, term.items)
            part = (term.share * term.coefficient * term.value).to(device)
            self.added = part if self.added is None else self.added + part
        if self.added is not None and loss is not None:
            outputs.loss = loss + self.added


DATA_PARALLEL_REFUSED = (
    "a mixture of experts does not run under torch.nn.DataParallel, whose replicas share its losses: start one "
    "process per GPU (torchrun or accelerate launch), or show the program one GPU (CUDA_VISIBLE_DEVICES=0)"
)

ADAPTER_NAMES_REFUSED = (
    "adapter_names gives each sample an adapter of its own, but moe runs one adapter at a time: call "
    "set_adapter(name), and run the samples of each adapter as a batch"
)


def _returns_tuple(model: nn.Module, kwargs: dict[str, Any]) -> bool:
    """Whether a call of a model of transformers asks for a tuple, in which a loss is found by its place alone."""
    if not isinstance(model, PreTrainedModel):
        return False
    asked = kwargs.get("return_dict")
    return not (model.config.return_dict if asked is None else asked)


def _generate(model: Any, *args: Any, **kwargs: Any) -> Any:
    """Stand in for `model.generate(inputs=None, ...)`, whose forward passes share the prompt's language groups."""
    given = (kwargs.get("inputs_embeds"), *args[:1], kwargs.get("inputs"), kwargs.get("input_ids"))
    prompt = next((tokens for tokens in given if tokens is not None), None)
    with vars(model)["moe_objective"].context.generating(None if prompt is None else prompt.shape[1]):
        return type(model).generate(model, *args, **kwargs)


def _configs(model: nn.Module) -> dict[str, Any]:
    """The configurations of the model's adapters."""
    configs: dict[str, Any] = vars(model).get("peft_config", {})
    return configs


def _check_losses_possible(
    config: MoeConfig, layers: dict[int, LayerRouting], labels: torch.Tensor | None, inputs: MixtureInputs
) -> None:
    """Refuse to train with a loss that was asked for but would be skipped or have no gradient."""
    wanted = [name for name in LOSS_COEFFICIENTS if getattr(config, name)]
    if not wanted:
        return
    names = " and ".join(wanted)
    if labels is None:
        raise ValueError(
            f"{names} is set, but the model returned no loss to add to: pass labels, or set the coefficient to 0"
        )
    if any(r.router_trainable and not r.router_logits.requires_grad for r in layers.values()):
        raise ValueError(
            f"{names} is set, but the router logits carry no gradient: reentrant gradient checkpointing runs the "
            "forward without one; use gradient_checkpointing_kwargs={'use_reentrant': False}"
        )
    if config.lpr_loss_coef and inputs.old_tokens is None:
        raise ValueError(
            "lpr_loss_coef is set, but the batch has no old_language_mask (batch, sequence) marking the tokens of the "
            "languages to keep: tag the data sets, or set lpr_loss_coef to 0"
        )
    if config.classify_loss_coef and inputs.group_tags is None:
        raise ValueError(
            "classify_loss_coef is set, but the batch has no group_tags (batch,) or (batch, sequence) with the "
            "language group of each sequence: tag the data sets, or set classify_loss_coef to 0"
        )
    if config.sequential_add_loss_coef and inputs.target_experts is None and inputs.group_tags is None:
        raise ValueError(
            "sequential_add_loss_coef is set, but the batch has neither target_experts (batch, sequence, targets) nor "
            "group_tags (batch, sequence): tag the data sets, or set sequential_add_loss_coef to 0"
        )
