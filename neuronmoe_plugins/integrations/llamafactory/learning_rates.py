"""Learning rates of their own: of the routers, and of the rows of new tokens."""

from __future__ import annotations

from typing import Any

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.integrations.stand_ins import Call
from neuronmoe_plugins.tuner.saved_modules import ROWS

# Argument -> what names of parameters have in them that get this rate.
OWN_RATES = {"router_learning_rate": ".moe_router.", "new_token_learning_rate": ROWS}


def create_optimizer(call: Call) -> Any:
    """Stand in for `create_optimizer()`: parameters with a learning rate of their own get groups of their own."""
    trainer = call.instance
    is_made = trainer.optimizer is not None
    optimizer = call.host()
    if is_made:
        return optimizer
    for argument, part in OWN_RATES.items():
        rate = getattr(trainer.finetuning_args, argument)
        if rate is not None:
            chosen = {id(parameter) for name, parameter in trainer.model.named_parameters() if part in name}
            _set_apart(optimizer, chosen, rate)
    return optimizer


def _set_apart(optimizer: Any, chosen: set[int], rate: float) -> None:
    for group in list(optimizer.param_groups):
        own = [parameter for parameter in group["params"] if id(parameter) in chosen]
        if own:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in chosen]
            optimizer.add_param_group({**group, "params": own, "lr": rate})


def check_learning_rates(finetuning_args: Any, training_args: Any) -> None:
    """Refuse rates of their own that would have no effect.

    Raises:
        UserError: naming the key.
    """
    given = [argument for argument in OWN_RATES if getattr(finetuning_args, argument) is not None]
    if finetuning_args.train_only_router and "router_learning_rate" in given:
        raise UserError("router_learning_rate has no effect with train_only_router: give learning_rate")
    settings = getattr(getattr(training_args, "hf_deepspeed_config", None), "config", {})
    # DeepSpeed's own make groups of their own, or give all of them one rate.
    named = next((name for name in ("optimizer", "scheduler") if name in settings), None)
    if given and named:
        raise UserError(f"{given[0]} has no effect where deepspeed names its {named}: remove {named} from its file")
