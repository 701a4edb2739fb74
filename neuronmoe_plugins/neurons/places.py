"""Where in a model an analysis looks: projections, activation functions and the inputs of MLPs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from torch import nn

from neuronmoe_plugins.blocks import Block, ExpertTargets, find_blocks
from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.feed_forward import find_feed_forwards, without_adapter
from neuronmoe_plugins.neurons.arrays import ModuleKey
from neuronmoe_plugins.neurons.options import COMPONENTS, IN_ATTENTION, Component, component_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from neuronmoe_plugins.tuner import MoeLayer


@dataclass(frozen=True)
class Place:
    """A module whose outputs, or inputs, are pooled for every sentence.

    Attributes:
        module: What is hooked.
        units: Size of the last dimension.
        mixture: The mixture of experts whose original MLP holds the module; see `replay` in `recording.py`.
        of_input: Whether the module's input is taken, not its output.
        attributed: Whether each value is multiplied by the loss's gradient with respect to it, and negated.
    """

    module: nn.Module
    units: int
    mixture: nn.Module | None = None
    of_input: bool = False
    attributed: bool = False


def find_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder's layers; raises `UserError` if the model has no list of as many modules as it says it has layers."""
    decoder = model.get_decoder()
    expected = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    for module in decoder.modules():
        if isinstance(module, nn.ModuleList) and len(module) == expected:
            return module
    raise UserError(
        f"{type(model).__name__} has no decoder layers to analyse: looked in its {type(decoder).__name__} for a list "
        f"of {expected} modules"
    )


def find_projections(
    model: PreTrainedModel, components: Sequence[Component] = COMPONENTS
) -> tuple[dict[ModuleKey, Place], list[str]]:
    """All linear layers of every decoder layer's attention and MLP.

    For Llama and its kin these are q, k, v, o, gate, up and down (Kojima et al. 2024); other models have their own
    names. Adapters are looked through: of a LoRA layer the sum is taken, of a mixture of experts the original MLP.

    Args:
        model: A causal language model.
        components: Which of attention and MLP to take.

    Returns:
        The projections in layer order, and the names of what else is linear: layers in neither attention nor MLP, and
        the stacked weights of a model that is itself a mixture of experts.

    Raises:
        UserError: if a layer has no linear layer in one of the components.
    """
    found: dict[ModuleKey, Place] = {}
    others: set[str] = set()
    for index, layer in enumerate(find_layers(model)):
        present = set()
        for name, place in _linear_layers(layer):
            component = component_of(name)
            if component is None:
                others.add(name)
            elif component in components:
                found[index, name] = place
                present.add(component)
        # Weights of several experts in one tensor, those of adapters left out.
        others.update(name for name, weight in layer.named_parameters() if weight.dim() == 3 and "moe_" not in name)
        if missing := [component for component in components if component not in present]:
            raise UserError(
                f"{type(model).__name__} has no linear layers in the {' and the '.join(missing)} of decoder layer "
                f"{index} ({type(layer).__name__}); choose other --components"
            )
    return found, sorted(others)


def _linear_layers(
    module: nn.Module, prefix: str = "", mixture: nn.Module | None = None
) -> Iterator[tuple[str, Place]]:
    """Linear layers below `module` and their names without an adapter's parts."""
    for child_name, child in module.named_children():
        name, base = f"{prefix}{child_name}", without_adapter(child)
        if isinstance(base, nn.Linear):
            yield name, Place(child, base.out_features, mixture)
        elif type(base).__name__ == "Conv1D":  # as GPT-2 has it, transposed
            yield name, Place(child, int(base.nf), mixture)  # type: ignore[arg-type]
        else:
            # An attention block runs on all tokens as it does without its mixture.
            is_whole = base is child or component_of(name) == "attention"
            yield from _linear_layers(base, f"{name}.", mixture if is_whole else child)


def find_activation_functions(model: PreTrainedModel) -> dict[ModuleKey, Place]:
    """The activation function of every decoder layer's MLP; its output is the gated activation (Tang et al. 2024).

    Raises:
        UserError: if the model's MLPs are of no known family, or their activation function is no module.
    """
    try:
        mlps = find_feed_forwards(model)
    except ValueError as error:
        raise UserError(f"the activations of this model's MLPs cannot be observed: {error}") from error
    found: dict[ModuleKey, Place] = {}
    for layer, mlp in mlps.items():
        outer = model.get_submodule(mlp.name)
        inner = without_adapter(outer)
        activation = getattr(inner, mlp.family.activation)
        if not isinstance(activation, nn.Module):
            raise UserError(f"{mlp.name}.{mlp.family.activation} is a function, not a module; it cannot be observed")
        down = without_adapter(inner.get_submodule(mlp.family.projections[-1]))
        name = f"{mlp.name.split('.')[-1]}.{mlp.family.activation}"
        assert isinstance(down, nn.Linear)
        found[layer, name] = Place(activation, down.in_features, None if inner is outer else outer)
    return found


def find_mlp_inputs(model: PreTrainedModel) -> dict[ModuleKey, Place]:
    """The input of every decoder layer's MLP, after the norm before it; empty if the MLPs are of no known family."""
    try:
        mlps = find_feed_forwards(model)
    except ValueError:
        return {}
    hidden_size = model.config.get_text_config().hidden_size
    return {
        (layer, f"{mlp.name.split('.')[-1]} input"): Place(model.get_submodule(mlp.name), hidden_size, of_input=True)
        for layer, mlp in mlps.items()
    }


def find_mixtures(model: PreTrainedModel) -> dict[int, MoeLayer]:
    """The mixtures by decoder layer; raises `UserError` if the adapter has none, or some that are no MLPs."""
    from neuronmoe_plugins.tuner import MixtureLayer, MoeLayer

    if any(isinstance(module, MixtureLayer) and not isinstance(module, MoeLayer) for module in model.modules()):
        raise UserError(f"the adapter {IN_ATTENTION}")
    found = {module.layer_index: module for module in model.modules() if isinstance(module, MoeLayer) and module.plans}
    if not found:
        raise UserError("--adapter has no mixture of experts; name one of the method moe")
    return dict(sorted(found.items()))


def expert_sizes(model: PreTrainedModel) -> dict[str, list[int] | None]:
    """What a new expert of each layer has in parameters; None where MLPs or attention are of no known family.

    Returns:
        `mlp_parameters`: weights and biases of a copy of the MLP. `mlp_widths`: inputs and outputs of its linear
        layers, the parameters of a low-rank expert per rank. `mlp_ranks`: the least of them, the highest rank that all
        take. `attention_widths` and `attention_ranks`: the same of attention.
    """
    names = ("mlp_parameters", "mlp_widths", "mlp_ranks", "attention_widths", "attention_ranks")
    sizes: dict[str, list[int] | None] = dict.fromkeys(names)

    def linear_layers(block: Block) -> list[nn.Linear]:
        inner = without_adapter(model.get_submodule(block.name))
        return [cast(nn.Linear, without_adapter(inner.get_submodule(name))) for name in block.family.projections]

    try:
        mlps = find_feed_forwards(model)
        for part in (ExpertTargets.MLP, ExpertTargets.ATTENTION):
            layers = [linear_layers(block) for block in find_blocks(model, mlps, part)]
            if part is ExpertTargets.MLP:
                sizes["mlp_parameters"] = [sum(map(_parameters, of_layer)) for of_layer in layers]
            sides = [
                [side for each in of_layer for side in (each.in_features, each.out_features)] for of_layer in layers
            ]
            sizes[f"{part.value}_widths"], sizes[f"{part.value}_ranks"] = list(map(sum, sides)), list(map(min, sides))
    except ValueError:  # what is found no more stays None
        pass
    return sizes


def _parameters(linear: nn.Linear) -> int:
    return (linear.in_features + (linear.bias is not None)) * linear.out_features
