"""Two allocations for one model against each other, in absolute numbers and per cent."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from neuronmoe_plugins.allocation.allocation import Allocation
from neuronmoe_plugins.errors import UserError


@dataclass(frozen=True)
class Difference:
    """One measure of two allocations; None where it is not known.

    A reduction of all experts looks smaller than the same one of new experts, since both allocations have the original
    MLPs: 49 for 84 experts is 41.7 % fewer, but with 28 layers 21 for 56 new ones, 62.5 % fewer.
    """

    measure: str
    this: int | None
    other: int | None

    @property
    def absolute(self) -> int | None:
        """This less the other."""
        return None if self.this is None or self.other is None else self.this - self.other

    @property
    def per_cent(self) -> float | None:
        """The difference in per cent of the other; None also where the other is 0."""
        return None if self.absolute is None or not self.other else 100 * self.absolute / self.other


def compare(this: Allocation, other: Allocation) -> list[Difference]:
    """All experts, new experts and added parameters of two allocations.

    Raises:
        UserError: if they are for models with different layers.
    """
    check_comparable(this, other, "the other allocation")
    return [
        Difference("experts", this.total_experts, other.total_experts),
        Difference("new experts", this.new_experts, other.new_experts),
        Difference("added parameters", this.added_parameters, other.added_parameters),
    ]


def load_comparable(path: Path, this: Allocation) -> Allocation:
    """Read an allocation to compare with; raises `UserError` naming the file if it is for another model."""
    other = Allocation.load(path)
    check_comparable(this, other, str(path))
    return other


def check_comparable(this: Allocation, other: Allocation, name: str) -> None:
    """Raise `UserError` if the allocations are for models with different layers; `name` is what the other is called."""
    if len(this.num_experts) != len(other.num_experts):
        raise UserError(
            f"{name} is for {len(other.num_experts)} layers, this allocation for {len(this.num_experts)}; compare "
            "allocations for one model"
        )
    if this.added_parameters is None or other.added_parameters is None:
        return
    if (this.hidden_size, this.mlp_parameters) != (other.hidden_size, other.mlp_parameters):
        raise UserError(
            f"{name} is for a model with MLPs of another size (hidden_size, mlp_parameters); compare allocations for "
            "one model"
        )
