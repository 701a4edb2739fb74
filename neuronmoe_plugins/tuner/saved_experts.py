"""The experts in an adapter's file beside the base model's weights: what each adds to them, read one at a time.

Shapes: a weight is (out, in), a stack of experts (experts, out, in), their biases (experts, out), and of low rank A
(experts, rank, in) and B (experts, out, rank).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.tuner.checkpoint import PEFT_PREFIX
from neuronmoe_plugins.tuner.config import MoeConfig
from neuronmoe_plugins.tuner.experts.stacks import DOWN, UP
from neuronmoe_plugins.tuner.plans import LayerPlan
from neuronmoe_plugins.tuner.reference_format import is_published

NAME = re.compile(
    rf"(?P<block>.*\.(?P<layer>\d+)\.\w+)\.moe_(?P<projection>\w+?)(?P<part>_bias|{re.escape(DOWN)}|{re.escape(UP)})?"
)


@dataclass(frozen=True)
class SavedProjection:
    """One projection of all experts of a layer.

    Attributes:
        name: Of its stack in the adapter's file.
        layer: Index of the decoder layer.
        projection: Its name in the MLP.
        base_name: Of the module in the base model.
    """

    name: str
    layer: int
    projection: str
    base_name: str


class SavedExperts:
    """The experts of an adapter.

    Args:
        file: Its open safetensors file, of which parts can be read.
        place: What is said of it in errors.
        config: Its configuration.
        plans: What that makes of the base's layers.

    Attributes:
        names: Of the tensors that are the experts'.
        projections: In the order of the file.

    Raises:
        UserError: if the file has no experts, those of the published format, or others than the configuration says.
    """

    def __init__(self, file: Any, place: str, config: MoeConfig, plans: Mapping[int, LayerPlan]) -> None:
        self._file, self._place, self._config, self._plans = file, place, config, plans
        keys = dict.fromkeys(file.keys())
        if is_published(keys):
            raise UserError(f"{place} is in the published format: run `neuronmoe convert` on it first")
        found = {key: match for key in keys if (match := NAME.fullmatch(key))}
        self.names = set(found)
        projections = {f"{match['block']}.moe_{match['projection']}": match for match in found.values()}
        self.projections = [
            SavedProjection(
                name,
                int(match["layer"]),
                match["projection"],
                f"{match['block']}.{match['projection']}".removeprefix(PEFT_PREFIX),
            )
            for name, match in projections.items()
        ]
        if not self.projections:
            raise UserError(f"{place} has no experts: it is not the adapter of a mixture")
        self._check_counts()

    def _check_counts(self) -> None:
        in_file = {each.layer for each in self.projections}
        if in_file != self._plans.keys():
            layers = sorted(in_file ^ self._plans.keys())
            raise UserError(f"{self._place} has not the mixtures of its configuration, as in layer {layers[0]}")
        for each in self.projections:
            parts = ("",) if self._config.expert_rank is None else (DOWN, UP)
            for part in parts:
                name, experts = f"{each.name}{part}", self._plans[each.layer].num_experts - 1
                if name not in self.names or self._file.get_slice(name).get_shape()[0] != experts:
                    raise UserError(f"{self._place} has not the {experts} experts of its configuration in {name}")

    def shape(self, of: SavedProjection) -> tuple[int, int]:
        """(out, in) of the projection."""
        if self._config.expert_rank is None:
            _, out, into = self._file.get_slice(of.name).get_shape()
        else:
            out, into = (
                self._file.get_slice(f"{of.name}{part}").get_shape()[side] for part, side in ((UP, 1), (DOWN, 2))
            )
        return out, into

    def check_base(self, read: Callable[[str], Any]) -> None:
        """Look at all of the base's weights and biases, before any is used.

        Args:
            read: Reads a base model's weight by its name: a tensor or a slice of a file; None where there is none.

        Raises:
            UserError: if one is missing, quantised or of another shape, or an expert has a bias of its own, for which
                experts of low rank have no place.
        """
        if self._config.expert_rank is not None:
            return
        for each in self.projections:
            weight = read(f"{each.base_name}.weight")
            shape = (
                None if weight is None else tuple(weight.get_shape() if hasattr(weight, "get_shape") else weight.shape)
            )
            if shape != self.shape(each):
                raise UserError(
                    f"{each.base_name} is {shape or 'missing'} in the base model and {self.shape(each)} in "
                    f"{self._place}: name the model that the adapter is one of, unquantised"
                )
            name = f"{each.name}_bias"
            if name in self.names:
                bias = read(f"{each.base_name}.bias")[:]
                for expert, own in enumerate(self._file.get_tensor(name), start=1):
                    if not torch.equal(own, bias.to(own.dtype)):
                        raise UserError(
                            f"expert {expert} has learned a bias in {each.base_name}, and experts of low rank have the "
                            f"base's: {self._place} cannot be compressed"
                        )

    def deltas(self, of: SavedProjection, read: Callable[[str], Any]) -> Iterator[tuple[torch.Tensor, torch.dtype]]:
        """What each expert adds to the base's weight, (out, in) float32, and the dtype that it is saved in."""
        if self._config.expert_rank is not None:
            scaling = self._plans[of.layer].scaling
            for down, up in zip(*(self._file.get_tensor(f"{of.name}{part}") for part in (DOWN, UP)), strict=True):
                yield scaling * up.float() @ down.float(), down.dtype
            return
        weight, stack = read(f"{of.base_name}.weight")[:], self._file.get_slice(of.name)
        for expert in range(self._plans[of.layer].num_experts - 1):
            own = stack[expert]
            # Where the experts are coarser than the base's file, they started from what it was rounded to.
            yield own.float() - weight.to(own.dtype).float(), own.dtype
