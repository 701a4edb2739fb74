"""What a run logs of its mixture: tables before its first step, values in every log, and warnings."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import rich.box
import torch
from llamafactory.extras import logging
from llamafactory.train.callbacks import LogCallback, ReporterCallback
from rich.console import Console
from rich.table import Table
from transformers import TrainerCallback

from neuronmoe_plugins.blocks import block_name, block_order
from neuronmoe_plugins.integrations.llamafactory.memory import (
    MemoryEstimate,
    Setup,
    dtype_of,
    estimate_memory,
    num_elements,
    setup_of,
)
from neuronmoe_plugins.integrations.llamafactory.routing import (
    STARVED_SHARE,
    STARVED_STEPS,
    RecentRouting,
    StarvationMonitor,
    StarvedExpert,
    write_routing,
)
from neuronmoe_plugins.tuner import MixtureLayer
from neuronmoe_plugins.tuner.config import LOSS_COEFFICIENTS
from neuronmoe_plugins.tuner.metrics import LayerShapes, MetricSums, RoutingCounts
from neuronmoe_plugins.tuner.saved_modules import MIXTURE, WHOLE, is_added

LOSSES = ("lm_loss", *(name.removesuffix("_coef") for name in LOSS_COEFFICIENTS))

# What routing.json is measured over: this share of a run's steps, its last ones.
REPORTED_SHARE = 0.1

WIDTH = 110

logger = logging.get_logger("llamafactory.neuronmoe")


def log_start_table(trainer: Any) -> None:
    """Log both tables on the main process, through the host's logger, which also writes LLaMA Board's log file."""
    reporters = (one for one in trainer.callback_handler.callbacks if isinstance(one, ReporterCallback))
    setup = setup_of(trainer, next(reporters, None))
    optim = str(getattr(trainer.args.optim, "value", trainer.args.optim))
    memory = memory_table(trainer.model, estimate_memory(trainer.model, setup), setup, optim)
    logger.info_rank0(f"Mixture layers and memory\n{as_text(layer_table(trainer.model))}\n{as_text(memory)}")


def layer_table(model: torch.nn.Module) -> Table:
    """A row for each layer in which the active adapter has a mixture, and their sum."""
    table = Table(box=rich.box.MARKDOWN)
    mixtures = (module for module in model.modules() if isinstance(module, MixtureLayer))
    layers = sorted(mixtures, key=lambda layer: block_order(layer.block))
    has_ranks = any(layer.plans[layer.active_adapters[0]].expert_rank for layer in layers)
    for heading in ("layer", "experts", *(["rank"] if has_ranks else []), "top-k", "new parameters", "trainable"):
        table.add_column(heading, justify="right")
    experts, added, trainable = 0, 0, 0
    for layer in layers:
        name = layer.active_adapters[0]
        parameters = [parameter for key, parameter in layer.named_parameters() if MIXTURE in f".{key}"]
        plan, own, trained = layer.plans[name], num_elements(parameters), num_elements(_trained(parameters))
        topk = min(layer.topk[name], plan.num_experts)
        rank = [str(plan.expert_rank)] if has_ranks else []
        table.add_row(block_name(layer.block), str(plan.num_experts), *rank, str(topk), f"{own:,}", f"{trained:,}")
        experts, added, trainable = experts + plan.num_experts, added + own, trainable + trained
    no_rank = [""] if has_ranks else []
    table.add_row(f"all {len(layers)}", str(experts), *no_rank, "", f"{added:,}", f"{trainable:,}")
    saved: dict[str, list[torch.nn.Parameter]] = {}
    for key, parameter in model.named_parameters():
        if WHOLE in key:
            saved.setdefault(key.split(WHOLE)[0].rpartition(".")[2], []).append(parameter)
    for name, parameters in saved.items():
        table.add_row(
            name, "", *no_rank, "", f"{num_elements(parameters):,}", f"{num_elements(_trained(parameters)):,}"
        )
    return table


def memory_table(model: torch.nn.Module, estimate: MemoryEstimate, setup: Setup, optim: str) -> Table:
    """A row for each part of the estimate that is not 0, and their sums."""
    mixture, base = (
        [p for name, p in model.named_parameters() if is_added(name) == wanted] for wanted in (True, False)
    )
    rows = {
        "base_weights": ("base model", _dtypes(base, setup)),
        "mixture_weights": ("experts and routers", _dtypes(mixture, setup)),
        "master_weights": ("DeepSpeed's copies", "float32, of what is trained"),
        "gradients": ("gradients", _dtypes(_trained(model.parameters()), setup)),
        "buckets": ("DDP's gradient buckets", ""),
        "optimizer": ("optimizer states", optim if setup.optimizer else "of an optimizer that is not known here"),
    }
    table = Table("memory per process, an estimate", "", box=rich.box.MARKDOWN)
    table.add_column("size", justify="right")
    for name, (heading, what) in rows.items():
        if getattr(estimate, name) != 0:
            where = "in the CPU's memory" if name in estimate.offloaded else ""
            table.add_row(heading, ", ".join(filter(None, (what, where))), _size(getattr(estimate, name)))
    table.add_row("sum", "of the above, without activations", _size(estimate.without_activations))
    if estimate.peak is None:
        table.add_row("activations", "not estimated without gradient checkpointing, or with Liger kernels", "")
    else:
        table.add_row(
            "activations", f"roughly, at the loss of {setup.num_tokens:,} tokens", _size(estimate.activations)
        )
        both = "both together" if estimate.keeps_gradients else "both, but that gradients take the activations' place"
        table.add_row("peak", both, _size(estimate.peak))
    return table


def as_text(table: Table) -> str:
    """A table as lines of ASCII, which every log file can hold."""
    console = Console(file=io.StringIO(), width=WIDTH, color_system=None, force_jupyter=False, markup=False)
    console.print(table)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in lines if line.strip())


def _trained(parameters: Iterable[torch.nn.Parameter]) -> list[torch.nn.Parameter]:
    return [parameter for parameter in parameters if parameter.requires_grad]


def _dtypes(parameters: Iterable[torch.nn.Parameter], setup: Setup) -> str:
    """Names of the dtypes in which parameters will be."""
    names = {str(dtype_of(parameter, setup)).removeprefix("torch.") for parameter in parameters}
    return " and ".join(sorted(names))


def _size(number: int | None) -> str:
    if number is None:
        return "not known"
    return f"{number / 2**30:.2f} GiB" if number >= 2**30 else f"{number / 2**20:.2f} MiB"


class RoutingLog(TrainerCallback):
    """What a trainer's run has to say about its mixture.

    Args:
        trainer: The host's trainer of a `moe` model.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._shapes: LayerShapes = ()
        self._start = self._last_step = 0
        self._monitor = StarvationMonitor()
        self._recent = RecentRouting(1)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start counting, after a resumption anew."""
        self._shapes = mixture_shapes(self._trainer.model)
        self._start = state.global_step
        # Below it if sums of the steps before the resumption were kept for the next log.
        self._last_step = getattr(self._trainer, "_globalstep_last_logged", state.global_step)
        self._monitor = StarvationMonitor(self._last_step)
        self._recent = RecentRouting(math.ceil(REPORTED_SHARE * state.max_steps), self._last_step)

    def log_step(self) -> MetricSums:
        """Take up the window since the last log and warn of experts without tokens.

        Every process has to call this.

        Returns:
            What all processes added up in the window.
        """
        sums, step = reduced_sums(self._trainer, self._shapes), self._trainer.state.global_step
        self._last_step = step
        self._recent.add(step, sums.routing)
        starved = self._monitor.add(step, sums.routing)
        if starved and self._trainer.is_world_process_zero():
            logger.warning(starvation_warning(starved, self._trainer.finetuning_args))
        return sums

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take up the steps after the last log, in every process."""
        if state.global_step > self._last_step:
            self.log_step()

    def write(self) -> None:
        """Write `routing.json` and its pictures, on the main process, if the training ran to its end.

        A run that LLaMA Board stopped has none, and one that was already finished when it was resumed keeps its own.
        """
        trainer, recent = self._trainer, self._recent.counts()
        callbacks = trainer.callback_handler.callbacks
        aborted = any(callback.aborted for callback in callbacks if isinstance(callback, LogCallback))
        finished = trainer.state.global_step > self._start and not aborted
        if trainer.is_world_process_zero() and finished and recent.counts.choices.any():
            write_routing(Path(trainer.args.output_dir), recent, trainer.model.active_peft_config)


def reduced_sums(trainer: Any, shapes: LayerShapes) -> MetricSums:
    """The tuner's metrics since the last log, added up over all processes; what there is, in the order of the log.

    Every process has to call this. A process may lack a loss that another has, as where it got no old-language token:
    what is added up is of a size that the model alone determines.

    Args:
        trainer: The host's trainer.
        shapes: Those of all mixture layers.
    """
    local = trainer.model.base_model.objective.metrics.pop()
    losses = torch.tensor([local.losses.get(name, (0.0, 0.0)) for name in LOSSES], dtype=torch.float64)
    routing = RoutingCounts.none(shapes) + local.routing
    sums = torch.cat([losses.flatten(), torch.from_numpy(routing.choices).double().flatten()])
    reduced = trainer.accelerator.reduce(sums.to(trainer.accelerator.device), reduction="sum").cpu()
    pairs = zip(LOSSES, reduced[: losses.numel()].view(-1, 2).tolist(), strict=True)
    choices = reduced[losses.numel() :].view(routing.choices.shape).numpy().astype(routing.choices.dtype)
    return MetricSums({name: (total, number) for name, (total, number) in pairs}, RoutingCounts(shapes, choices))


def mixture_shapes(model: torch.nn.Module) -> LayerShapes:
    """Layer index, topk and number of experts of each layer in which the active adapter has a mixture."""
    shapes = []
    for module in model.modules():
        if isinstance(module, MixtureLayer):
            name = module.active_adapters[0]
            num_experts = module.plans[name].num_experts
            shapes.append((module.block, min(module.topk[name], num_experts), num_experts))
    return tuple(sorted(shapes, key=lambda shape: block_order(shape[0])))


def starvation_warning(starved: list[StarvedExpert], finetuning_args: Any) -> str:
    """One line that names the experts, how many tokens they had, and what can be done."""
    named = ", ".join(f"layer {block_name(one.layer)} expert {one.expert} ({_percentages(one)})" for one in starved)
    found = (
        f"experts that less than {STARVED_SHARE:.0%} of their layer's tokens used in the last {STARVED_STEPS} steps: "
        f"{named}. "
    )
    balance, prior = (_value(getattr(finetuning_args, name)) for name in ("aux_loss_coef", "lpr_loss_coef"))
    if finetuning_args.train_only_router or finetuning_args.lpr_loss_coef:
        return found + (
            "The language-prior loss draws old-language tokens away from all but expert 0, so this is no fault where "
            f"most tokens are old; if new-language tokens should use these experts, lower lpr_loss_coef ({prior}) or "
            f"train on more new-language text (aux_loss_coef: {balance})"
        )
    return found + (
        "An expert without tokens learns nothing: spread them with a larger aux_loss_coef "
        f"({balance}), or give these layers fewer experts"
    )


def _percentages(starved: StarvedExpert) -> str:
    of_new = "" if starved.new_share is None else f", {starved.new_share:.1%} of those in new languages"
    return f"{starved.share:.1%}{of_new}"


def _value(coefficient: float | None) -> str:
    return "not set" if coefficient is None else f"now {coefficient:g}"
