"""The training objective: the LM loss plus the mixture's losses, added where the model returns its loss."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from neuronmoe_plugins.tuner.config import MoeConfig
from neuronmoe_plugins.tuner.losses import language_prior_loss, load_balancing_loss
from neuronmoe_plugins.tuner.masks import old_language_tokens, real_tokens
from neuronmoe_plugins.tuner.metrics import RoutingMetrics, RoutingShares
from neuronmoe_plugins.tuner.routing import LayerRouting, RoutingRecorder


class Objective:
    """Hooks on the base model's call that record routing and add losses.

    In training, `outputs.loss` becomes `lm + share * aux_loss_coef * balance + old_share * lpr_loss_coef * lpr`, where
    balance and lpr are means over the mixture layers. `share` is this micro-batch's part of `num_items_in_batch`, the
    trainer's count of labelled tokens over all micro-batches and processes, by which it has already divided the LM
    loss; `old_share` is its part of the old-language tokens, `num_old_items_in_batch`, or else `share` again. Without a
    count both are 1. Hooks reach every way in which PEFT and its hosts call the base model.

    Attributes:
        recorder: Shared with the mixture layers.
        metrics: Means for logs.
        shares: Routing shares under measurement, if any.
    """

    def __init__(self, model: nn.Module) -> None:
        self.recorder = RoutingRecorder()
        self.metrics = RoutingMetrics()
        self.shares: RoutingShares | None = None
        self._signature = inspect.signature(model.forward)
        self._old_language_mask: torch.Tensor | None = None
        self._num_old_items: torch.Tensor | None = None
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
        self._old_language_mask = kwargs.pop("old_language_mask", None)
        self._num_old_items = kwargs.pop("num_old_items_in_batch", None)
        if model.training or self.shares is not None:
            self.recorder.start()
        return args, kwargs

    def _after_forward(self, model: nn.Module, args: Any, kwargs: dict[str, Any], outputs: Any) -> Any:
        layers = self.recorder.stop()
        if not layers:
            return outputs
        inputs = self._signature.bind_partial(*args, **kwargs).arguments
        inputs |= inputs.pop("kwargs", {})
        token_mask = real_tokens(inputs.get("attention_mask"))
        if self.shares is not None:
            self.shares.add(layers, token_mask)
        if model.training and torch.is_grad_enabled():
            configs: dict[str, MoeConfig] = vars(model)["peft_config"]
            config = configs[next(iter(layers.values())).adapter_name]
            self._add_losses(config, layers, inputs, token_mask, outputs)
        return outputs

    def _add_losses(
        self,
        config: MoeConfig,
        layers: dict[int, LayerRouting],
        inputs: dict[str, Any],
        token_mask: torch.Tensor | None,
        outputs: Any,
    ) -> None:
        old_language_mask = self._old_language_mask
        if old_language_mask is not None:
            old_language_mask = old_language_tokens(old_language_mask, inputs.get("attention_mask"))
        _check_losses_possible(config, layers, outputs, old_language_mask)
        loss, labels = getattr(outputs, "loss", None), inputs.get("labels")
        if loss is None or labels is None:
            return
        items = (labels != -100).sum()
        total_items = inputs.get("num_items_in_batch")
        total_items = items if total_items is None else total_items
        share = items / total_items
        self.metrics.add("lm_loss", loss * total_items, items)
        self.metrics.add_routing(layers, token_mask, old_language_mask)
        if config.aux_loss_coef:
            balances = (load_balancing_loss(r.router_logits, r.selected_experts, token_mask) for r in layers.values())
            balance = _mean(balances, loss.device)
            self.metrics.add("aux_loss", balance * items, items)
            loss = loss + share * config.aux_loss_coef * balance
        if config.lpr_loss_coef and old_language_mask is not None:
            double = config.lpr_double_softmax
            priors = (language_prior_loss(r.router_logits, old_language_mask, double) for r in layers.values())
            lpr = _mean(priors, loss.device)
            old_tokens = old_language_mask.sum()
            self.metrics.add("lpr_loss", lpr * old_tokens, old_tokens)
            old_share = share if self._num_old_items is None else old_tokens / self._num_old_items.clamp(min=1)
            loss = loss + old_share * config.lpr_loss_coef * lpr
        outputs.loss = loss


def _mean(losses: Iterable[torch.Tensor], device: torch.device) -> torch.Tensor:
    """Mean of scalar losses over the mixture layers, which may lie on several devices."""
    return torch.stack([loss.to(device) for loss in losses]).mean()


def _check_losses_possible(
    config: MoeConfig, layers: dict[int, LayerRouting], outputs: Any, old_language_mask: torch.Tensor | None
) -> None:
    """Refuse to train with a loss that was asked for but would be skipped or have no gradient."""
    wanted = [name for name in ("aux_loss_coef", "lpr_loss_coef") if getattr(config, name)]
    if not wanted:
        return
    names = " and ".join(wanted)
    if getattr(outputs, "loss", None) is None:
        raise ValueError(
            f"{names} is set, but the model returned no loss to add to: pass labels (and no label smoothing or custom "
            "loss function, which take them away from the model), or set the coefficient to 0"
        )
    if any(r.router_trainable and not r.router_logits.requires_grad for r in layers.values()):
        raise ValueError(
            f"{names} is set, but the router logits carry no gradient: reentrant gradient checkpointing runs the "
            "forward without one; use gradient_checkpointing_kwargs={'use_reentrant': False}"
        )
    if config.lpr_loss_coef and old_language_mask is None:
        raise ValueError(
            "lpr_loss_coef is set, but the batch has no old_language_mask (batch, sequence) marking the tokens of the "
            "languages to keep: tag the data sets, or set lpr_loss_coef to 0"
        )
