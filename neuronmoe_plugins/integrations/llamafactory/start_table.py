"""What a run logs before its first step: a table of its mixture layers, and of the memory that training will take."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

import rich.box
import torch
from llamafactory.extras import logging
from llamafactory.train.callbacks import ReporterCallback
from rich.console import Console
from rich.table import Table

from neuronmoe_plugins.integrations.llamafactory.training_setup import setup_of
from neuronmoe_plugins.tuner import MoeLayer
from neuronmoe_plugins.tuner.memory import MIXTURE, MemoryEstimate, Setup, dtype_of, estimate_memory, num_elements

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
    for heading in ("layer", "experts", "top-k", "new parameters", "trainable"):
        table.add_column(heading, justify="right")
    layers = sorted((m for m in model.modules() if isinstance(m, MoeLayer)), key=lambda layer: layer.layer_index)
    experts, added, trainable = 0, 0, 0
    for layer in layers:
        name = layer.active_adapters[0]
        parameters = [parameter for key, parameter in layer.named_parameters() if MIXTURE in f".{key}"]
        plan, own, trained = layer.plans[name], num_elements(parameters), num_elements(_trained(parameters))
        topk = min(layer.topk[name], plan.num_experts)
        table.add_row(str(layer.layer_index), str(plan.num_experts), str(topk), f"{own:,}", f"{trained:,}")
        experts, added, trainable = experts + plan.num_experts, added + own, trainable + trained
    table.add_row(f"all {len(layers)}", str(experts), "", f"{added:,}", f"{trainable:,}")
    return table


def memory_table(model: torch.nn.Module, estimate: MemoryEstimate, setup: Setup, optim: str) -> Table:
    """A row for each part of the estimate that is not 0, and their sums."""
    mixture, base = (
        [p for name, p in model.named_parameters() if (MIXTURE in name) == wanted] for wanted in (True, False)
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
    console = Console(file=io.StringIO(), width=WIDTH, color_system=None, force_jupyter=False)
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
