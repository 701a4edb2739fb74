"""Numbers that say of each decoder layer how much a language would change it, or of what quality it is.

Shapes: T tokens of a block, L decoder layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.feed_forward import find_feed_forwards
from neuronmoe_plugins.neurons.activations import needs_cache, working_device
from neuronmoe_plugins.neurons.places import find_mixtures

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from neuronmoe_plugins.tuner import MoeLayer

# Of an eigenvalue by the largest: below, float32 has nothing but rounding.
SMALLEST_LOGARITHM = math.log(1e-12)


def mlp_weights(model: PreTrainedModel) -> list[dict[str, nn.Parameter]]:
    """The weights and biases of each decoder layer's MLP by name, all of which are here and in floating point."""
    try:
        mlps = find_feed_forwards(model)
    except ValueError as error:
        raise UserError(f"--measure: {error}") from error
    found = []
    for mlp in mlps.values():
        names = [f"{mlp.name}.{name}" for name in mlp.family.projections]
        own = {f"{name}.{kind}": each for name in names for kind, each in model.get_submodule(name).named_parameters()}
        for name, parameter in own.items():
            if parameter.is_meta or not parameter.is_floating_point():
                problem = "is not in memory" if parameter.is_meta else f"is quantised ({parameter.dtype})"
                raise UserError(f"--measure needs the MLPs' weights as they were trained: {name} {problem}")
        found.append(own)
    return found


@contextmanager
def squared_gradients(
    model: PreTrainedModel, weights: Sequence[dict[str, nn.Parameter]]
) -> Iterator[Callable[[Sequence[int]], list[float]]]:
    """A function from a block to the squared gradient of its mean loss, summed over each layer's MLP weights.

    The trace of the empirical Fisher information, for one block. A weight's gradient is squared, summed and freed as
    soon as the backward pass has it, so that there is never more than one beside the block's activations.
    """
    sums = [0.0] * len(weights)

    def take(layer: int, parameter: Tensor) -> None:
        assert parameter.grad is not None
        sums[layer] += float(parameter.grad.float().square().sum(dtype=torch.float64))
        parameter.grad = None

    def run(block: Sequence[int]) -> list[float]:
        sums[:] = [0.0] * len(weights)
        try:
            mean_loss(model, block).backward()
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"the backward pass of a block of {len(block)} tokens does not fit into the device's memory; pass "
                "--dtype bfloat16 or --device auto, or leave --measure gradient out"
            ) from error
        return list(sums)

    model.requires_grad_(False)
    with ExitStack() as hooks:
        for layer, own in enumerate(weights):
            for parameter in own.values():
                parameter.requires_grad_(True)
                hooks.callback(parameter.register_post_accumulate_grad_hook(partial(take, layer)).remove)
        yield run
    model.requires_grad_(False)


def mean_loss(model: PreTrainedModel, block: Sequence[int]) -> Tensor:
    """The language-model loss of a block (T), the mean over its T - 1 predictions in nats."""
    ids = torch.tensor([block], device=working_device(model))
    loss: Tensor = model(input_ids=ids, labels=ids, use_cache=needs_cache(model)).loss
    return loss


def mean_exponent(weights: dict[str, nn.Parameter]) -> float:
    """The mean of the exponents of an MLP's matrices; raises `UserError` naming one that has none."""
    exponents = []
    for name, weight in weights.items():
        if weight.dim() == 2:
            exponents.append(hill_exponent(torch.linalg.svdvals(weight.detach().float()).double().square()))
            if not math.isfinite(exponents[-1]):
                why = "its larger eigenvalues are all equal, or half of them are zero"
                raise UserError(f"--measure spectral: {name} has no exponent: {why}")
    return sum(exponents) / len(exponents)


def hill_exponent(eigenvalues: Tensor) -> float:
    """PL_Alpha_Hill of AlphaLoRA (Qing et al. 2024, arXiv 2410.10054), Hill's estimator of a power law's exponent.

    alpha = 1 + k / sum_{i=1..k} ln(lambda_{n-i+1} / lambda_{n-k}), for ascending eigenvalues and k = n // 2: the larger
    half of them is taken for the tail of a density in proportion to lambda^-alpha. The larger alpha, the lighter the
    tail and the less a layer was trained. The published code takes attention's matrices, too, and the k at which the
    Kolmogorov-Smirnov distance is least.

    Args:
        eigenvalues: Those of W^T W, float64 (n,), in descending order, n >= 2.

    Returns:
        alpha > 1; infinite if the tail is flat, or zero but for rounding.
    """
    tail = len(eigenvalues) // 2
    logarithms = (eigenvalues[: tail + 1] / eigenvalues[0]).log()
    total = float((logarithms[:tail] - logarithms[tail]).sum())
    return 1 + tail / total if total > 0 and logarithms[tail] > SMALLEST_LOGARITHM else math.inf


def mixtures_of_all_layers(model: PreTrainedModel) -> dict[int, MoeLayer]:
    """The mixtures by decoder layer; raises `UserError` naming a layer that has none."""
    mixtures = find_mixtures(model)
    for layer in range(model.config.get_text_config().num_hidden_layers):
        if layer not in mixtures:
            raise UserError(
                f"--adapter has no new expert in layer {layer}; train one in every layer, as `neuronmoe allocate "
                "--strategy uniform --max-experts 2` gives"
            )
    return mixtures


def deviation(mixture: MoeLayer) -> float:
    """How far the new experts of a layer went: Frobenius norm of their difference from the MLP that they began as.

    Over all matrices of the MLP, as in DMoE (Li et al. 2025, arXiv 2506.12388) after ten steps of training; of several
    experts the root of the mean square.

    Raises:
        UserError: if the MLP is quantised, or weights are not in memory.
    """
    if mixture.base_is_quantised or any(each.is_meta for each in mixture.parameters()):
        problem = "is quantised" if mixture.base_is_quantised else "is not all in memory"
        raise UserError(
            f"--measure parameter-deviation needs whole weights: the MLP of layer {mixture.layer_index} {problem}"
        )
    base, *experts = mixture.expert_projections()
    linears = {name: getattr(mixture.get_base_layer(), name) for name in mixture.family.projections}
    total = 0.0
    with torch.no_grad():
        for name, linear in linears.items():
            # What a matrix gives for unit vectors is the matrix; a bias is what it gives for none.
            units = torch.eye(linear.in_features, dtype=linear.weight.dtype, device=linear.weight.device)
            matrices = [each(name, units).float() - each(name, units[:1] * 0).float() for each in (base, *experts)]
            total += sum(float((own - matrices[0]).square().sum(dtype=torch.float64)) for own in matrices[1:])
    return math.sqrt(total / len(experts))


def knock_outs(model: PreTrainedModel, mixtures: Mapping[int, MoeLayer], block: Sequence[int]) -> list[float]:
    """By how much the loss of a block (T) grows, in nats, where one layer has its original MLP alone; (L,)."""
    with torch.no_grad():
        whole, without = float(mean_loss(model, block)), []
        for mixture in mixtures.values():
            mixture.enable_adapters(False)
            try:
                without.append(float(mean_loss(model, block)))
            finally:
                mixture.enable_adapters(True)
    return [loss - whole for loss in without]
