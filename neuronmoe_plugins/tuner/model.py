"""The PEFT tuner: turns MLPs, and attention blocks, into mixtures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from peft.config import PeftConfig
from peft.peft_model import PeftModel
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from neuronmoe_plugins.blocks import AttentionFamily, find_blocks
from neuronmoe_plugins.feed_forward import find_feed_forwards
from neuronmoe_plugins.host_versions import whole_tuner
from neuronmoe_plugins.tuner.attention import MoeAttention
from neuronmoe_plugins.tuner.checkpoint import AdapterFiles
from neuronmoe_plugins.tuner.config import MoeConfig
from neuronmoe_plugins.tuner.experts import check_implementation
from neuronmoe_plugins.tuner.fingerprint import check_new_tokens, fingerprint
from neuronmoe_plugins.tuner.layer import MoeLayer
from neuronmoe_plugins.tuner.metrics import RoutingShares
from neuronmoe_plugins.tuner.mixture import MERGE_REFUSED, MixtureLayer
from neuronmoe_plugins.tuner.objective import ADAPTER_NAMES_REFUSED, Objective
from neuronmoe_plugins.tuner.saved_modules import check_modules, keep_frozen, unwrap


class MoeModel(AdapterFiles, whole_tuner(BaseTuner)):  # type: ignore[misc]
    """Creates a mixture-of-experts model from a dense causal LM (NeuronMoE, arXiv 2603.05046, section 3.3).

    Any program that calls the model trains it: the forward takes the mixture's inputs beside the model's own
    (`old_language_mask`, `group_tags`, `target_experts`, see :mod:`neuronmoe_plugins.tuner.inputs`), and in training
    adds the losses whose coefficients are set to `outputs.loss` (see
    :class:`~neuronmoe_plugins.tuner.objective.Objective`).

    Args:
        model: The base model.
        config: A :class:`MoeConfig`, or a dictionary of them by adapter name.
        adapter_name: Name of the adapter.
        low_cpu_mem_usage: Create the adapter's weights on the meta device, to be filled from a checkpoint.

    Raises:
        ValueError: if the model has no MLP, or no attention, that can become a mixture, or the expert counts do not fit
            its layers.
    """

    prefix: str = "moe_"
    tuner_layer_cls = MixtureLayer

    def _prepare_adapter_config(self, peft_config: PeftConfig, model_config: dict[str, Any]) -> PeftConfig:
        return peft_config

    def _prepare_model(self, peft_config: PeftConfig, model: nn.Module) -> None:
        if isinstance(model, PeftModel):
            raise ValueError(
                "the model has adapters already: give it another mixture by model.add_adapter(name, config), or call "
                "merge_and_unload() or unload() first"
            )
        _check_no_other_method(model)
        config, mlps = cast(MoeConfig, peft_config), find_feed_forwards(model)
        config.base_new_tokens = check_new_tokens(model, config)
        plans = config.layer_plans(len(mlps))
        config.base_fingerprint = fingerprint(model, mlps) or config.base_fingerprint
        blocks = find_blocks(model, mlps, config.targets)
        self._targets = {block.name: (block, plans[block.layer]) for block in blocks if block.layer in plans}
        check_modules(peft_config, model, self._targets)
        self.objective = Objective.attach(model)

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Add an adapter, of which `train_only_router` also freezes what is saved beside the mixtures."""
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        config = cast(MoeConfig, self.peft_config[adapter_name])
        keep_frozen(model, [adapter_name] if config.train_only_router else [])

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
        block, plan = self._targets[current_key]
        layer: MixtureLayer
        if isinstance(target, MixtureLayer):
            layer = target
        elif isinstance(block.family, AttentionFamily):
            layer = MoeAttention(target, block.family, block.layer, self.objective.context)
        else:
            layer = MoeLayer(target, block.family, block.layer, self.objective.context)
        layer.update_layer(adapter_name, plan, config)
        layer.set_adapter(self.active_adapters, inference_mode=peft_config.inference_mode)
        if layer is not target:
            self._replace_module(parent, target_name, layer, target)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        # peft's own version copies `weight` between linear layers; an MLP has none.
        if isinstance(child, MixtureLayer):
            child.release_base()
        setattr(parent, child_name, new_module)

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """Keep the experts in the base's dtype: they are as large as MLPs, and run beside one."""

    def _check_merge_allowed(self) -> None:
        raise ValueError(MERGE_REFUSED)

    @contextmanager
    def _enable_peft_forward_hooks(self, *_args: Any, **kwargs: Any) -> Iterator[None]:
        """Around PEFT's calls, which take away the arguments that are its own."""
        if kwargs.get("adapter_names") is not None:
            raise ValueError(ADAPTER_NAMES_REFUSED)
        yield

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the base model, with the objective's hooks; see the class for what they add."""
        return self.model(*args, **kwargs)

    def tie_weights(self, *args: Any, **kwargs: Any) -> None:
        """Tie the base's weights, as hosts ask; those that PEFT has wrapped stay as they are, since it tied them."""
        if not any(isinstance(module, AuxiliaryTrainingWrapper) for module in self.model.modules()):
            cast(Any, self.model).tie_weights(*args, **kwargs)

    def set_experts_implementation(self, name: str) -> None:
        """Run the experts of all adapters by `auto`, `loop`, `sorted` or `grouped_mm` from now on.

        Raises:
            ValueError: if there is none of this name.
        """
        check_implementation("experts_implementation", name)
        for module in self.model.modules():
            if isinstance(module, MixtureLayer):
                module.experts_implementation = dict.fromkeys(module.experts_implementation, name)

    def unload(self) -> nn.Module:
        """Remove all that adapters added and return the base model, as it was before."""
        unwrap(self.model)
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


def _check_no_other_method(model: nn.Module) -> None:
    """Refuse adapters of other methods within the model: they would be frozen as a part of it, and never saved."""
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer) and not isinstance(module, MixtureLayer):
            raise ValueError(
                f"{name} has an adapter of another method ({type(module).__module__}): merge it into the base model "
                "first, or delete it"
            )
