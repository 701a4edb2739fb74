"""The PEFT tuner: turns MLPs into mixtures, and adds the mixture's losses where the model returns its own."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from peft.config import PeftConfig
from peft.tuners.tuners_utils import BaseTuner
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from neuronmoe_plugins.feed_forward import find_feed_forwards
from neuronmoe_plugins.host_versions import whole_tuner
from neuronmoe_plugins.tuner.checkpoint import AdapterFiles
from neuronmoe_plugins.tuner.config import LOSS_COEFFICIENTS, MoeConfig
from neuronmoe_plugins.tuner.experts import check_implementation
from neuronmoe_plugins.tuner.inputs import LABELS_TOTAL, MIXTURE_LABELS, MixtureInputs
from neuronmoe_plugins.tuner.layer import MERGE_REFUSED, MoeLayer
from neuronmoe_plugins.tuner.losses import IGNORED
from neuronmoe_plugins.tuner.metrics import RoutingMetrics, RoutingShares
from neuronmoe_plugins.tuner.routing import CACHE_ATTRIBUTE, ForwardContext, LayerRouting, groups_of_cache
from neuronmoe_plugins.tuner.terms import mixture_terms


class MoeModel(AdapterFiles, whole_tuner(BaseTuner)):  # type: ignore[misc]
    """Creates a mixture-of-experts model from a dense causal LM (NeuronMoE, arXiv 2603.05046, section 3.3).

    Any program that calls the model trains it: the forward takes the mixture's inputs beside the model's own
    (`old_language_mask`, `group_tags`, `target_experts`, see :mod:`neuronmoe_plugins.tuner.inputs`), and in training
    adds the losses whose coefficients are set to `outputs.loss` (see
    :class:`~neuronmoe_plugins.tuner.model.Objective`).

    Args:
        model: The base model.
        config: A :class:`MoeConfig`, or a dictionary of them by adapter name.
        adapter_name: Name of the adapter.
        low_cpu_mem_usage: Create the adapter's weights on the meta device, to be filled from a checkpoint.

    Raises:
        ValueError: if the model has no MLP that can become a mixture, or the expert counts do not fit its layers.
    """

    prefix: str = "moe_"
    tuner_layer_cls = MoeLayer

    def _prepare_adapter_config(self, peft_config: PeftConfig, model_config: dict[str, Any]) -> PeftConfig:
        return peft_config

    def _prepare_model(self, peft_config: PeftConfig, model: nn.Module) -> None:
        mlps = find_feed_forwards(cast(PreTrainedModel, model))
        plans = cast(MoeConfig, peft_config).layer_plans(len(mlps))
        self._targets = {mlps[layer].name: (layer, mlps[layer].family, plan) for layer, plan in plans.items()}
        self.objective = Objective.attach(model)

    def _check_target_module_exists(self, peft_config: PeftConfig, key: str) -> bool:  # type: ignore[override]
        return key in self._targets

    def _create_and_replace(
        self,
        peft_config: PeftConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        config = cast(MoeConfig, peft_config)
        layer_index, family, plan = self._targets[current_key]
        layer = (
            target if isinstance(target, MoeLayer) else MoeLayer(target, family, layer_index, self.objective.context)
        )
        layer.update_layer(adapter_name, plan, config)
        layer.set_adapter(self.active_adapters, inference_mode=peft_config.inference_mode)
        if layer is not target:
            self._replace_module(parent, target_name, layer, target)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        # peft's own version copies `weight` between linear layers; an MLP has none.
        setattr(parent, child_name, new_module)

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """Keep the experts in the base's dtype: they are as large as MLPs, and run beside one."""

    def _check_merge_allowed(self) -> None:
        raise ValueError(MERGE_REFUSED)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the base model, with the objective's hooks; see the class for what they add."""
        return self.model(*args, **kwargs)

    def set_experts_implementation(self, name: str) -> None:
        """Run the experts of all adapters by `auto`, `loop`, `sorted` or `grouped_mm` from now on.

        Raises:
            ValueError: if there is none of this name.
        """
        check_implementation("experts_implementation", name)
        for module in self.model.modules():
            if isinstance(module, MoeLayer):
                module.experts_implementation = dict.fromkeys(module.experts_implementation, name)

    def unload(self) -> nn.Module:
        """Remove the mixtures and return the base model."""
        model = super().unload()
        self.objective.detach(model)
        return model

    def pop_metric_sums(self) -> dict[str, tuple[float, float]]:
        """As :meth:`pop_metrics`, as (sum of values, number of values) that `objective.metrics.add` takes back.

        The routing comes as single counts with the number 0.
        """
        return self.objective.metrics.pop().named()

    def pop_metrics(self) -> dict[str, float]:
        """Means over the training forwards since the last call, of this process.

        Returns:
            `lm_loss`, `aux_loss`, `lpr_loss`, `classify_loss` and `sequential_add_loss` (those in use, before their
            coefficients; nats per item, but for the balance loss, which has no unit), and per mixture layer
            `expert0_share/layer_{i}` (the share of tokens whose most probable expert is expert 0),
            `expert0_share_old/layer_{i}` (the same over old-language tokens, where a mask was given) and
            `expert_share/layer_{i}/expert_{e}` (the share of all top-k choices that are expert e).
        """
        return self.objective.metrics.pop().means()

    @contextmanager
    def routing_shares(self) -> Iterator[RoutingShares]:
        """Measure the routing of every forward within the context, in evaluation or training.

        Yields:
            A dictionary, filled as the model runs: layer index -> (num_experts,) share of real tokens whose most
            probable expert is e.
        """
        self.objective.shares = RoutingShares()
        try:
            yield self.objective.shares
        finally:
            self.objective.shares = None


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
        self._signature = inspect.signature(model.forward)
        self._handles: list[RemovableHandle] = [
            model.register_forward_pre_hook(self._before_forward, with_kwargs=True),
            model.register_forward_hook(self._after_forward, with_kwargs=True),
        ]

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

    def _before_forward(self, model: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if getattr(model, "_is_replica", False):
            raise ValueError(DATA_PARALLEL_REFUSED)
        given = MixtureInputs.take(kwargs)
        inputs = self._arguments(args, kwargs)
        routes_groups = any(config.group_nums for config in _configs(model).values() if isinstance(config, MoeConfig))
        groups = groups_of_cache(inputs.get("past_key_values")) if routes_groups else {}
        self.context.start(inputs.get("attention_mask"), groups, model.training or self.shares is not None, given)
        return args, kwargs

    def _after_forward(self, model: nn.Module, args: Any, kwargs: dict[str, Any], outputs: Any) -> Any:
        forward = self.context.current
        layers = self.context.stop()
        cache = getattr(outputs, "past_key_values", None)
        if forward.groups and cache is not None:
            setattr(cache, CACHE_ATTRIBUTE, forward.groups)
        if not layers:
            return outputs
        inputs = MixtureInputs.read(forward.given, forward.attention_mask)
        if self.shares is not None:
            self.shares.add(layers, inputs.token_mask)
        if model.training and torch.is_grad_enabled():
            config = _configs(model)[next(iter(layers.values())).adapter_name]
            self._add_losses(config, layers, inputs, {**self._arguments(args, kwargs), **forward.given}, outputs)
        return outputs

    def _arguments(self, args: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments of a model call by name."""
        arguments = self._signature.bind_partial(*args, **kwargs).arguments
        return arguments | arguments.pop("kwargs", {})

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
