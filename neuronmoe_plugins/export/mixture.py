"""A trained adapter's files on those of its base model: every expert's weights, read one at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from neuronmoe_plugins.errors import UserError, one_line
from neuronmoe_plugins.export.sources import BaseModel, Source, TensorFiles
from neuronmoe_plugins.models import ADAPTER, ADAPTER_WEIGHTS, local_file, read_adapter_config
from neuronmoe_plugins.tuner import MoeConfig
from neuronmoe_plugins.tuner.checkpoint import CLASSIFIER, PEFT_PREFIX
from neuronmoe_plugins.tuner.experts.stacks import DOWN, UP
from neuronmoe_plugins.tuner.fingerprint import require_base, require_tokens
from neuronmoe_plugins.tuner.plans import LayerPlan
from neuronmoe_plugins.tuner.reference_format import PUBLISHED_ROUTER, ROUTER, published_name
from neuronmoe_plugins.tuner.saved_modules import ROWS_IN_FILE


@dataclass(frozen=True)
class Trained:
    """What an adapter has in the place of a weight of its base.

    Attributes:
        name: Of the base's tensor.
        rows: Which of its rows; empty for all.
    """

    name: str
    rows: list[int] = field(default_factory=list)

    def of(self, files: TensorFiles) -> torch.Tensor:
        """The same part of the tensor in the files of a model, in float32."""
        weight = files.source(self.name).read().float()
        return weight[self.rows] if self.rows else weight


class Mixture:
    """An adapter on its base model.

    Args:
        adapter: Folder or hub name of the adapter.
        model: The base model, if it is not what the adapter names.
        flags: What names the two.

    Raises:
        UserError: if one cannot be had, they do not belong together, or the adapter has what no MLP's experts are.
    """

    def __init__(self, adapter: str, model: str | None, flags: tuple[str, str]) -> None:
        self.name, self.place, flag = adapter, f"{flags[0]} {adapter}", flags[1]
        self._flags = flags
        self.config_in_file, self.config = _adapter_config(self.place, adapter)
        named = model or self.config.base_model_name_or_path
        if not named:
            raise UserError(f"{self.place} names no base model; pass {flag}")
        self.base = BaseModel(flag, named)
        of_another = f"{self.place} is one of another model"
        require_tokens(of_another, self.config.made_with_tokens, named, self.base.config)
        try:
            self.plans: dict[int, LayerPlan] = self.config.layer_plans(len(self.base.mlps))
        except ValueError as error:
            raise UserError(f"{self.place} does not fit {flag} {named}: {error}") from error
        path = local_file(adapter, ADAPTER_WEIGHTS)
        if path is None:
            raise UserError(f"{self.place} has no {ADAPTER_WEIGHTS}; adapters in adapter_model.bin are not read")
        self.files = TensorFiles([path])
        self.rows = self._find_rows()
        self._check_tensors()
        require_base(of_another, self.config.made_on, named, self.base.files.slice)

    @property
    def counts(self) -> dict[int, int]:
        """Decoder layer -> experts, the base MLP included; 1 where it stays dense."""
        return {layer: self.plans[layer].num_experts if layer in self.plans else 1 for layer in self.base.mlps}

    @property
    def tokenizer_home(self) -> tuple[str, str]:
        """Where its tokenizer is, the adapter's if that has one, and what names the place."""
        if local_file(self.name, "tokenizer_config.json"):
            return self.name, self._flags[0]
        return self.base.name, self._flags[1]

    @property
    def dtype(self) -> torch.dtype:
        """The finest of the adapter's tensors."""
        dtypes = (self.files.dtype(name) or torch.float32 for name in self.files.names())
        return max(dtypes, key=lambda dtype: dtype.itemsize)

    def projections(self, layer: int) -> tuple[str, ...]:
        """Names of the linear layers of an MLP."""
        return self.base.mlps[layer].family.projections

    def expert(self, layer: int, expert: int, projection: str) -> Source:
        """The weight (out, in) of one of an expert's linear layers; expert 0 is the base MLP."""
        of_base = self.base.files.source(f"{self.base.mlps[layer].name}.{projection}.weight")
        if expert == 0:
            return of_base
        return Source(of_base.shape, partial(self._read_expert, layer, expert, projection, of_base))

    def _read_expert(self, layer: int, expert: int, projection: str, of_base: Source) -> torch.Tensor:
        plan, name = self.plans[layer], f"{self._prefix(layer)}.moe_{projection}"
        if plan.expert_rank is not None:
            down, up = (self.files.row(f"{name}{part}", expert - 1).float() for part in (DOWN, UP))
            return of_base.read().float() + plan.scaling * (up @ down)
        if name in self.files.names():
            return self.files.row(name, expert - 1)
        return self.files.source(published_name(self._prefix(layer), expert, projection)).read()

    def bias(self, layer: int, expert: int, projection: str) -> Source | None:
        """The bias (out,) of one of an expert's linear layers, None where there is none; low rank has the base's."""
        name, copies = f"{self.base.mlps[layer].name}.{projection}.bias", f"{self._prefix(layer)}.moe_{projection}_bias"
        if name not in self.base.names:
            return None
        of_base = self.base.files.source(name)
        if expert == 0 or copies not in self.files.names():
            return of_base
        return Source(of_base.shape, lambda: self.files.row(copies, expert - 1))

    def router(self, layer: int) -> Source:
        """(num_experts, hidden)."""
        return self.files.source(self._router_name(layer))

    def weight(self, name: str) -> Source:
        """A tensor of the base, with the rows that the adapter has trained of it."""
        source = self.base.files.source(name)
        for in_file, trained in self.rows.items():
            if trained.name == name:
                return Source(source.shape, partial(self._read_rows, source, in_file, trained.rows))
        return source

    def _read_rows(self, source: Source, in_file: str, rows: list[int]) -> torch.Tensor:
        trained = self.files.source(in_file).read()
        # In the finer of the two dtypes, so that neither is rounded.
        weight = source.read().to(torch.promote_types(trained.dtype, self.base.dtype), copy=True)
        weight[rows] = trained.to(weight.dtype)
        return weight

    def trained_weights(self) -> dict[str, Trained]:
        """Name of a tensor in the adapter's file -> the base's weight that it was before it was trained."""
        copied: dict[str, str] = {}
        for layer, plan in self.plans.items():
            prefix = self._prefix(layer)
            for projection in self.projections(layer) if plan.expert_rank is None else ():
                name, of_base = f"{prefix}.moe_{projection}", f"{self.base.mlps[layer].name}.{projection}"
                experts = [published_name(prefix, expert, projection) for expert in range(1, plan.num_experts)]
                copied |= dict.fromkeys((name, *experts), f"{of_base}.weight") | {f"{name}_bias": f"{of_base}.bias"}
        return self.rows | {name: Trained(copied[name]) for name in copied if name in self.files.names()}

    def num_parameters(self) -> int:
        """Those that the adapter adds to the base."""
        return sum(torch.Size(self.files.shape(name)).numel() for name in self.files.names())

    def _prefix(self, layer: int) -> str:
        return f"{PEFT_PREFIX}{self.base.mlps[layer].name}"

    def _router_name(self, layer: int) -> str:
        ours, published = (f"{self._prefix(layer)}{suffix}" for suffix in (ROUTER, PUBLISHED_ROUTER))
        return published if published in self.files.names() else ours

    def _find_rows(self) -> dict[str, Trained]:
        """Name of a tensor of trained rows in the adapter's file -> what it is of."""
        indices, found = self.config.trainable_token_indices or [], {}
        by_module = indices if isinstance(indices, dict) else {"": indices}
        for name in self.files.names():
            module = name.removeprefix(PEFT_PREFIX).removesuffix(ROWS_IN_FILE)
            rows = [each for target, each in by_module.items() if module.endswith(target)]
            if name.endswith(ROWS_IN_FILE) and f"{module}.weight" in self.base.names and rows:
                found[name] = Trained(f"{module}.weight", rows[0])
        return found

    def _check_tensors(self) -> None:
        """The file has the mixtures' tensors in their shapes, and no others but rows, which the export would lose."""
        expected: dict[str, tuple[int, ...]] = {}
        for layer, plan in self.plans.items():
            expected |= self._layer_tensors(layer, plan)
        for name, trained in self.rows.items():
            expected[name] = (len(trained.rows), *self.base.files.shape(trained.name)[1:])
        names = self.files.names()
        if lost := sorted(names - expected.keys()):
            raise UserError(
                f"{self.place} has {lost[0]} beside its mixtures of MLPs and rows of tokens, which would be "
                "lost: take one of these alone"
            )
        wrong = [name for name, shape in expected.items() if name not in names or self.files.shape(name) != shape]
        if wrong:
            raise UserError(
                f"{self.place} does not fit its {ADAPTER[0]} and {self.base.place}: {wrong[0]} is "
                f"{self.files.shape(wrong[0]) if wrong[0] in names else 'missing'} instead of {expected[wrong[0]]}"
            )

    def _layer_tensors(self, layer: int, plan: LayerPlan) -> Mapping[str, tuple[int, ...]]:
        prefix, others, rank = self._prefix(layer), plan.num_experts - 1, plan.expert_rank
        router = self._router_name(layer)
        hidden = self.expert(layer, 0, self.projections(layer)[0]).shape[1]
        expected: dict[str, tuple[int, ...]] = {router: (plan.num_experts, hidden)}
        if plan.num_groups:
            expected[f"{prefix}{CLASSIFIER}"] = (plan.num_groups, hidden)
        for projection in self.projections(layer):
            out_features, in_features = self.expert(layer, 0, projection).shape
            name = f"{prefix}.moe_{projection}"
            if rank is not None:
                expected[f"{name}{DOWN}"] = (others, rank, in_features)
                expected[f"{name}{UP}"] = (others, out_features, rank)
            elif router.endswith(PUBLISHED_ROUTER):
                for expert in range(1, plan.num_experts):
                    expected[published_name(prefix, expert, projection)] = (out_features, in_features)
            else:
                expected[name] = (others, out_features, in_features)
                if f"{self.base.mlps[layer].name}.{projection}.bias" in self.base.names:
                    expected[f"{name}_bias"] = (others, out_features)
        return expected


def _adapter_config(place: str, adapter: str) -> tuple[dict[str, Any], MoeConfig]:
    path = local_file(adapter, ADAPTER[0])
    if path is None:
        raise UserError(f"{place} has no {ADAPTER[0]}")
    content = read_adapter_config(path)
    try:
        config: MoeConfig = MoeConfig.from_peft_type(**content)
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: {one_line(error)}") from error
    return content, config
