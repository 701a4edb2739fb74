"""How many experts each layer gets, and what that follows from: `allocation.yaml`."""

from __future__ import annotations

from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from neuronmoe_plugins.allocation.experts import BlockShapes, Choose, Placement, Shape
from neuronmoe_plugins.allocation.request import is_seed
from neuronmoe_plugins.blocks import ExpertTargets
from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.files import write_text, writing
from neuronmoe_plugins.reading import (
    Check,
    is_count,
    is_score,
    is_text,
    is_total,
    list_of,
    one_of,
    or_null,
    read_yaml,
    shown,
)

COUNT_OR_NULL = "a whole number, 1 or more, or null"
COUNTS = "a list of whole numbers, 1 or more, one per layer"


def _filled(check: Check) -> Check:
    return lambda value: bool(value) and check(value)


def _key(check: Check, meaning: str, default: Any = MISSING, **how: Any) -> Any:
    """A key of `allocation.yaml`, what its value must be, and what one that an older file lacks stands for."""
    return field(default=default, metadata={"key": (check, meaning)}, **how)


@dataclass(frozen=True)
class Allocation:
    """Experts per decoder layer; the base MLP counts as one, so 1 leaves a layer dense.

    What has no effect on the experts, or is not known, is None.

    Attributes:
        num_experts: One number per layer.
        layer_scores: One score per layer, before it is scaled; empty where there are none.
        min_experts: Least experts of a layer.
        max_experts: Most experts of a layer; None for no limit.
        rounding: How Eq. 4 became whole: floor or round.
        strategy: Name of the strategy.
        source: Language that the model knows.
        targets: Languages that it shall learn.
        scores_from: The analysis folder or scores file, as it was named.
        note: Why the experts are what they are, where that needs saying.
        score_name: What a score is.
        scale: What a score counts as: linear, sqrt or log.
        combine: How the neurons of several languages were counted: union or mean.
        neuron_identity: What makes two neurons of a layer the same: module (and unit) or unit.
        budget: What LayerMoE's formula shared out.
        requested_total_experts: `--total-experts`.
        max_added_parameters: `--max-added-parameters`.
        choose: What these were spent on, where that was said: experts or rank.
        scores_sha256: Checksum of the scores file, or of the analysis' summary.json.
        hidden_size: Width of the model's hidden states.
        mlp_parameters: Parameters of one copy of each layer's MLP.
        expert_rank: Rank of the new experts; None for copies of the MLPs.
        mlp_widths: Inputs and outputs of each layer's MLP's linear layers, where there is a rank.
        expert_targets: What the new experts change, where there is a rank: mlp, attention or both.
        attention_widths: As `mlp_widths`, of the attention's linear layers, where experts change these.
        placement: How scores became places, where that was not left to the strategy: linear or top.
        equal_experts: Whether layers were to have one count or stay dense.
        shape: Which layers get more experts, for the strategy of that name.
        seed: What `random` was drawn with.
        total_experts: Sum of `num_experts`.
        added_parameters: Of all new experts and routers.
    """

    num_experts: list[int] = _key(_filled(list_of(is_count)), COUNTS)
    layer_scores: list[float] = _key(list_of(is_score), "a list of numbers, zero or more")
    min_experts: int = _key(is_count, "a whole number, 1 or more")
    max_experts: int | None = _key(or_null(is_count), COUNT_OR_NULL)
    rounding: str | None = _key(or_null(one_of("floor", "round")), "floor, round or null")
    strategy: str = _key(is_text, "the name of a strategy")
    source: str | None = _key(or_null(is_text), "a language (in quotes) or null")
    targets: list[str] = _key(list_of(is_text), "a list of languages (in quotes)")
    scores_from: str = _key(is_text, "a path")
    note: str | None = _key(or_null(is_text), "a text or null", None)
    score_name: str = _key(is_text, "what a score is", "layer score")
    scale: str | None = _key(or_null(one_of("linear", "sqrt", "log")), "linear, sqrt, log or null", "linear")
    combine: str | None = _key(or_null(one_of("union", "mean")), "union, mean or null", None)
    neuron_identity: str | None = _key(or_null(one_of("module", "unit")), "module, unit or null", None)
    budget: int | None = _key(or_null(is_count), COUNT_OR_NULL, None)
    requested_total_experts: int | None = _key(or_null(is_count), COUNT_OR_NULL, None)
    max_added_parameters: int | None = _key(or_null(is_count), COUNT_OR_NULL, None)
    choose: str | None = _key(or_null(one_of(*Choose)), f"{', '.join(Choose)} or null", None)
    scores_sha256: str | None = _key(or_null(is_text), "a checksum (in quotes) or null", None)
    hidden_size: int | None = _key(or_null(is_count), COUNT_OR_NULL, None)
    mlp_parameters: list[int] | None = _key(or_null(_filled(list_of(is_count))), f"{COUNTS}, or null", None)
    expert_rank: int | None = _key(or_null(is_count), COUNT_OR_NULL, None)
    mlp_widths: list[int] | None = _key(or_null(_filled(list_of(is_count))), f"{COUNTS}, or null", None)
    expert_targets: str | None = _key(or_null(one_of(*ExpertTargets)), f"{', '.join(ExpertTargets)} or null", None)
    attention_widths: list[int] | None = _key(or_null(_filled(list_of(is_count))), f"{COUNTS}, or null", None)
    equal_experts: bool = _key(lambda value: isinstance(value, bool), "true or false", False)
    placement: str | None = _key(or_null(one_of(*Placement)), f"{', '.join(Placement)} or null", None)
    shape: str | None = _key(or_null(one_of(*Shape)), f"{', '.join(Shape)} or null", None)
    seed: int | None = _key(or_null(is_seed), "a whole number, 0 or more, or null", None)
    total_experts: int = _key(is_total, "a whole number", init=False)
    added_parameters: int | None = _key(or_null(is_total), "a whole number or null", init=False)

    def __post_init__(self) -> None:
        added = self.layer_added_parameters
        object.__setattr__(self, "total_experts", sum(self.num_experts))
        object.__setattr__(self, "added_parameters", None if added is None else sum(added))

    @property
    def new_experts(self) -> int:
        """Experts beside the original MLPs."""
        return sum(self.num_experts) - len(self.num_experts)

    @property
    def kind_of_new(self) -> str:
        """Follows the number of new experts: nothing for copies, ` of rank 4` or ` of rank 4 in attention`."""
        if self.expert_rank is None:
            return ""
        where = {ExpertTargets.ATTENTION: " in attention", ExpertTargets.BOTH: " in MLPs and attention"}
        return f" of rank {self.expert_rank}{where.get(ExpertTargets(self.expert_targets or ExpertTargets.MLP), '')}"

    @property
    def layer_added_parameters(self) -> list[int] | None:
        """New parameters of each layer; None where the model's sizes are not known."""
        if self.hidden_size is None or self.mlp_parameters is None:
            return None
        sizes = BlockShapes(
            self.hidden_size, self.mlp_parameters, self.mlp_widths, attention_widths=self.attention_widths
        )
        shapes = sizes.of_rank(self.expert_rank, ExpertTargets(self.expert_targets or ExpertTargets.MLP))
        return None if shapes is None else shapes.added_parameters(self.num_experts)

    def save(self, path: Path) -> None:
        """Write `allocation.yaml`; an earlier one is replaced only by a complete one."""
        content = asdict(self)
        ordered = {key: content.pop(key) for key in ("num_experts", "total_experts", "added_parameters")} | content
        text = yaml.safe_dump(ordered, sort_keys=False, default_flow_style=None, allow_unicode=True, width=120)
        with writing(f"--output {path}"):
            write_text(path, text)

    @classmethod
    def load(cls, path: Path) -> Allocation:
        """Read and check `allocation.yaml`; keys that older files lack get their defaults.

        Raises:
            UserError: naming the file and the key that is wrong.
        """
        content = read_yaml(path, missing=f"{path} does not exist; write it with `neuronmoe allocate`")
        if not isinstance(content, dict):
            raise UserError(f"{path} is not an allocation; write it with `neuronmoe allocate`")
        keys = {each.name: each for each in fields(cls)}
        required = {name for name, key in keys.items() if key.init and key.default is MISSING} | {"total_experts"}
        if missing := sorted(required - content.keys()):
            raise UserError(f"{path} lacks {', '.join(missing)}; write it with `neuronmoe allocate`")
        if unknown := sorted(map(shown, content.keys() - keys.keys())):
            raise UserError(f"{path} has the unknown key(s) {', '.join(unknown)}; remove them")
        for key, value in content.items():
            check, meaning = keys[key].metadata["key"]
            if not check(value):
                raise UserError(f"{path}: {key} is {shown(value)}; it must be {meaning}")
        _check_lengths(path, content)
        derived = {key: content.pop(key) for key in ("total_experts", "added_parameters") if key in content}
        allocation = cls(**content)
        for key, value in derived.items():
            follows = getattr(allocation, key)
            if value != follows:
                raise UserError(f"{path}: {key} is {shown(value)}, but {follows} follows from num_experts; correct one")
        return allocation


def _check_lengths(path: Path, content: dict[str, Any]) -> None:
    num_layers = len(content["num_experts"])
    for key in ("layer_scores", "mlp_parameters", "mlp_widths", "attention_widths"):
        values = content.get(key)
        if values and len(values) != num_layers:
            raise UserError(f"{path}: num_experts has {num_layers} layers, {key} {len(values)}")
    if (content.get("hidden_size") is None) != (content.get("mlp_parameters") is None):
        raise UserError(f"{path}: hidden_size and mlp_parameters belong together; set both or neither to null")
    if content.get("expert_rank") is None and content.get("expert_targets") is not None:
        raise UserError(f"{path}: expert_targets has no effect without expert_rank; set it to null, or give a rank")
