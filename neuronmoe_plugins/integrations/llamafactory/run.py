"""A `moe` run of LLaMA-Factory: what the user gave, read once, and what follows from it, each found out once."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from llamafactory.hparams.model_args import ModelArguments
from transformers import HfArgumentParser, PretrainedConfig

from neuronmoe_plugins.errors import UserError, one_line
from neuronmoe_plugins.integrations.llamafactory.arguments import MoeDataArguments, MoeFinetuningArguments
from neuronmoe_plugins.integrations.llamafactory.given_arguments import Given
from neuronmoe_plugins.models import new_token_rows
from neuronmoe_plugins.tuner import MoeConfig
from neuronmoe_plugins.tuner.plans import LayerPlan


@dataclass
class MoeRun:
    """A run as the user asked for it; its fine-tuning arguments carry it along to where its adapter is made.

    Attributes:
        given: The arguments that the user gave.
        model_args: The host's model arguments.
        data_args: Data arguments.
        finetuning_args: Fine-tuning arguments.
        notes: What the log should say of it.
        warnings: What the log should warn of.
    """

    given: Given
    model_args: Any
    data_args: MoeDataArguments
    finetuning_args: MoeFinetuningArguments
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, given: Given) -> MoeRun:
        """Read given arguments whose keys and values may be right.

        Raises:
            UserError: naming an argument that cannot be as it was given.
        """
        kinds: list[Any] = [ModelArguments, MoeDataArguments, MoeFinetuningArguments]
        try:
            run = cls(given, *HfArgumentParser(kinds).parse_dict(given, allow_extra_keys=True))
        except UserError:
            raise
        except ValueError as error:
            raise UserError(one_line(error)) from error
        run.finetuning_args.run = run
        run.data_args.of_moe = True
        return run

    def all_arguments(self, classes: list[Any]) -> tuple[Any, ...]:
        """What the host would parse: this run's arguments, and the rest of what was given.

        Args:
            classes: The dataclasses that the command's arguments are parsed into, in the order of the result.
        """
        own = {type(one): one for one in (self.model_args, self.data_args, self.finetuning_args)}
        others = [kind for kind in classes if kind not in own]
        parsed = HfArgumentParser(others).parse_dict(self.given, allow_extra_keys=True)
        found = own | dict(zip(others, parsed, strict=True))
        return tuple(found[kind] for kind in classes)

    def with_arguments(self, finetuning_args: MoeFinetuningArguments) -> MoeRun:
        """The same base model and saved adapter, used by other arguments."""
        other = replace(self, finetuning_args=finetuning_args)
        vars(other).update({name: vars(self)[name] for name in ("base_config", "saved") if name in vars(self)})
        return other

    @property
    def trains(self) -> bool:
        """Whether it trains."""
        return bool(self.given.get("do_train"))

    @property
    def adapter_path(self) -> str | None:
        """Folder or hub name of the adapter that it starts from."""
        path: str | None = (self.model_args.adapter_name_or_path or [None])[-1]
        return path

    # The rooms below import more of the host, whose arguments are being imported when this one is.

    @cached_property
    def base_config(self) -> PretrainedConfig:
        """The base model's configuration; raises UserError if there is none, or it cannot become a mixture."""
        from neuronmoe_plugins.integrations.llamafactory.adapter_fit import load_base_config

        return load_base_config(self.model_args)

    @property
    def num_layers(self) -> int:
        """Decoder layers of the base model."""
        return int(self.base_config.get_text_config().num_hidden_layers)

    @cached_property
    def saved(self) -> MoeConfig | None:
        """The adapter's configuration as it was saved; raises UserError if it cannot be read."""
        from neuronmoe_plugins.integrations.llamafactory.adapter import load_adapter_config

        return None if self.adapter_path is None else load_adapter_config(self.model_args)

    @cached_property
    def config(self) -> MoeConfig:
        """The configuration of the adapter that is used; raises UserError if the arguments ask for another one."""
        from neuronmoe_plugins.integrations.llamafactory.adapter import make_config

        rows = new_token_rows(self.base_config)
        return make_config(self.finetuning_args, self.num_layers, self.adapter_path, self.saved, rows)

    def new_config(self) -> MoeConfig:
        """A copy of :attr:`config` for a model, which changes it."""
        return copy.deepcopy(self.config)

    @cached_property
    def plans(self) -> dict[int, LayerPlan]:
        """Layer index -> what the mixture of that layer consists of; raises ValueError if counts do not fit."""
        return self.config.layer_plans(self.num_layers)
