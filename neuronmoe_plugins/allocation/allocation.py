"""How many experts each layer gets, and what that follows from: `allocation.yaml`."""

from __future__ import annotations

from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from neuronmoe_plugins.allocation.checks import shown
from neuronmoe_plugins.allocation.keys import KEYS
from neuronmoe_plugins.allocation.sizes import MlpShapes
from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.files import write_text


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
        scores_sha256: Checksum of the scores file, or of the analysis' summary.json.
        hidden_size: Width of the model's hidden states.
        mlp_parameters: Parameters of one copy of each layer's MLP.
        total_experts: Sum of `num_experts`.
        added_parameters: Of all new experts and routers.
    """

    num_experts: list[int]
    layer_scores: list[float]
    min_experts: int
    max_experts: int | None
    rounding: str | None
    strategy: str
    source: str | None
    targets: list[str]
    scores_from: str
    note: str | None = None
    score_name: str = "layer score"
    scale: str | None = "linear"
    combine: str | None = None
    neuron_identity: str | None = None
    budget: int | None = None
    requested_total_experts: int | None = None
    max_added_parameters: int | None = None
    scores_sha256: str | None = None
    hidden_size: int | None = None
    mlp_parameters: list[int] | None = None
    total_experts: int = field(init=False)
    added_parameters: int | None = field(init=False)

    def __post_init__(self) -> None:
        added = self.layer_added_parameters
        object.__setattr__(self, "total_experts", sum(self.num_experts))
        object.__setattr__(self, "added_parameters", None if added is None else sum(added))

    @property
    def new_experts(self) -> int:
        """Experts beside the original MLPs."""
        return sum(self.num_experts) - len(self.num_experts)

    @property
    def layer_added_parameters(self) -> list[int] | None:
        """New parameters of each layer; None where the model's sizes are not known."""
        if self.hidden_size is None or self.mlp_parameters is None:
            return None
        return MlpShapes(self.hidden_size, self.mlp_parameters).added_parameters(self.num_experts)

    def save(self, path: Path) -> None:
        """Write `allocation.yaml`; an earlier one is replaced only by a complete one."""
        content = asdict(self)
        ordered = {key: content.pop(key) for key in ("num_experts", "total_experts", "added_parameters")} | content
        text = yaml.safe_dump(ordered, sort_keys=False, default_flow_style=None, allow_unicode=True, width=120)
        try:
            write_text(path, text)
        except OSError as error:
            raise UserError(f"--output {path} cannot be written: {error.strerror}") from error

    @classmethod
    def load(cls, path: Path) -> Allocation:
        """Read and check `allocation.yaml`; keys that older files lack get their defaults.

        Raises:
            UserError: naming the file and the key that is wrong.
        """
        content = _read_mapping(path)
        required = {f.name for f in fields(cls) if f.init and f.default is MISSING} | {"total_experts"}
        if missing := sorted(required - content.keys()):
            raise UserError(f"{path} lacks {', '.join(missing)}; write it with `neuronmoe allocate`")
        if unknown := sorted(map(shown, content.keys() - {f.name for f in fields(cls)})):
            raise UserError(f"{path} has the unknown key(s) {', '.join(unknown)}; remove them")
        for key, value in content.items():
            check, meaning = KEYS[key]
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


def _read_mapping(path: Path) -> dict[Any, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; write it with `neuronmoe allocate`") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:  # not only YAMLError: KeyError for `!!bool x`, ValueError for dates that never were
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not an allocation; write it with `neuronmoe allocate`")
    return content


def _check_lengths(path: Path, content: dict[str, Any]) -> None:
    num_layers = len(content["num_experts"])
    for key in ("layer_scores", "mlp_parameters"):
        values = content.get(key)
        if values and len(values) != num_layers:
            raise UserError(f"{path}: num_experts has {num_layers} layers, {key} {len(values)}")
    if (content.get("hidden_size") is None) != (content.get("mlp_parameters") is None):
        raise UserError(f"{path}: hidden_size and mlp_parameters belong together; set both or neither to null")
