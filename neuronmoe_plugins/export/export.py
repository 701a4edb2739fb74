"""`neuronmoe export`: from an adapter to the checkpoint of a whole model."""

from __future__ import annotations

import json
from dataclasses import dataclass

import torch

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.export.checkpoint import (
    IN_LLAMA_CPP,
    IN_TRANSFORMERS,
    copy_beside,
    num_parameters,
    require_space,
    write_card,
    write_weights,
)
from neuronmoe_plugins.export.comparison import Comparison, compare, tokens_to_compare
from neuronmoe_plugins.export.containers import Container, Qwen2Moe, Qwen3Moe
from neuronmoe_plugins.export.ernie import Ernie45Moe
from neuronmoe_plugins.export.mixture import Mixture
from neuronmoe_plugins.export.own import NeuronMoe
from neuronmoe_plugins.export.request import GGUF, ExportRequest
from neuronmoe_plugins.export.sources import Source
from neuronmoe_plugins.files import new_directory, write_json, writing
from neuronmoe_plugins.neurons.loading import require_device

# Those that cost next to nothing first.
CONTAINERS = (Qwen2Moe(), Qwen3Moe(), Ernie45Moe())
OWN = NeuronMoe()
# Of the largest logit: what float32 rounds in other orders of the same sums, and what 16 bits do to the weights.
SAME, ROUNDED = 1e-4, 0.1


@dataclass(frozen=True)
class Export:
    """What was written.

    Attributes:
        model_type: The architecture.
        parameters: What it costs, as a sentence.
        comparison: With the adapter; none where another program runs it.
        is_rounded: Whether weights were rounded to the dtype.
        has_tokenizer: Whether a tokenizer was there to be copied.
    """

    model_type: str
    parameters: str
    comparison: Comparison | None
    is_rounded: bool
    has_tokenizer: bool

    def warnings(self) -> list[str]:
        """What may be wrong with it, a line each."""
        found = []
        if self.is_rounded:
            found.append("weights were rounded to the dtype of the checkpoint; --dtype float32 keeps them")
        if not self.has_tokenizer:
            found.append("neither the adapter nor the base model has a tokenizer, so that the checkpoint has none")
        return found


def export(request: ExportRequest, progress: bool = False) -> Export:
    """Write an adapter and its base as one checkpoint of an architecture that transformers knows.

    It is in `request.output` only once its logits were found to be the adapter's.

    Args:
        request: What is asked for.
        progress: Show a progress bar on standard error.

    Raises:
        UserError: for bad input, a mixture that no architecture can hold exactly, and logits that differ.
    """
    mixture = Mixture(request.adapter, request.model, ("ADAPTER", "--model"))
    if request.container == GGUF:
        return _export_gguf(request, mixture, progress)
    container, tensors = choose_container(request.container, mixture)
    dtype = mixture.base.dtype if request.dtype is None else getattr(torch, request.dtype)
    require_space(request.output, num_parameters(tensors) * dtype.itemsize)
    require_device(request.device)
    tokens, text = tokens_to_compare(request, mixture)
    parameters = _cost(container.model_type, mixture, tensors)
    with writing(f"--output {request.output}"), new_directory(request.output) as folder:
        write_json(folder / "config.json", container.config(mixture, dtype))
        has_tokenizer = copy_beside(mixture, folder)
        is_rounded = write_weights(folder, tensors, dtype, progress)
        comparison = compare(request, mixture, folder, tokens, text)
        limit = (ROUNDED if is_rounded else SAME) * comparison.largest
        if not comparison.difference <= limit:
            found = f"differ from the adapter's by {comparison.difference:.1e}, and may by {limit:.1e}"
            raise UserError(f"{mixture.place}: its logits as {container.model_type} {found}; nothing is written")
        write_card(
            folder,
            mixture,
            library="transformers",
            model_type=container.model_type,
            runs=IN_TRANSFORMERS.format(needs=container.needs, folder=json.dumps(str(request.output))),
            parameters=parameters,
            compared=f"{comparison} (both in float32).",
        )
    return Export(container.model_type, parameters, comparison, is_rounded, has_tokenizer)


def _export_gguf(request: ExportRequest, mixture: Mixture, progress: bool) -> Export:
    """A file for llama.cpp, whose logits are not compared: nothing here runs it."""
    _require_no_groups(mixture, "llama.cpp")
    try:
        from neuronmoe_plugins.export.gguf import DTYPES, FILE, plan_gguf, write_gguf
    except ImportError as error:
        raise UserError("--as gguf needs the package gguf: pip install 'neuronmoe-plugins[gguf]'") from error
    dtype = str(mixture.base.dtype).removeprefix("torch.") if request.dtype is None else request.dtype
    planned = plan_gguf(mixture, dtype if dtype in DTYPES else "float32")
    require_space(request.output, sum(map(planned.num_bytes, planned.tensors)))
    model_type, name = f"{planned.layout.architecture} of llama.cpp", request.output.name
    parameters = _cost(model_type, mixture, planned.tensors)
    with writing(f"--output {request.output}"), new_directory(request.output) as folder:
        is_rounded = write_gguf(planned, mixture, folder, name, progress)
        write_card(
            folder,
            mixture,
            library="llama.cpp",
            model_type=model_type,
            runs=IN_LLAMA_CPP.format(file=request.output / FILE),
            parameters=parameters,
            compared="Its logits were not compared with the adapter's, since llama.cpp is not run by the export.",
        )
    return Export(model_type, parameters, None, is_rounded, has_tokenizer=True)


def choose_container(wanted: str, mixture: Mixture) -> tuple[Container, dict[str, Source]]:
    """The architecture, and its tensors by name.

    Args:
        wanted: Its model type, or `auto` for the first of `CONTAINERS` that is exact.
        mixture: What it shall hold.

    Raises:
        UserError: if it cannot hold the mixture exactly, or none can; with the reasons.
    """
    _require_no_groups(mixture, "transformers")
    if wanted == OWN.model_type:
        return OWN, dict(OWN.tensors(mixture))
    asked = [each for each in CONTAINERS if wanted in ("auto", each.model_type)]
    refusals = {each.model_type: each.refusal(mixture) for each in asked}
    exact = next((each for each in asked if refusals[each.model_type] is None), None)
    if exact is not None:
        return exact, dict(exact.tensors(mixture))
    if wanted != "auto":
        raise UserError(f"--as {wanted} cannot hold {mixture.place} exactly: {refusals[wanted]}")
    family = mixture.base.config.model_type
    told = [f"{each.model_type}: {refusals[each.model_type]}" for each in asked if family in each.families]
    if not told:
        known = sorted({name for each in CONTAINERS for name in each.families})
        told = [f"known are those for {', '.join(known)}, and the base is {family}"]
    raise UserError(
        f"{mixture.place}: no architecture of transformers holds it exactly ({'; '.join(told)}); take --as "
        f"{OWN.model_type}, which runs where this package is installed, or run it as an adapter"
    )


def _require_no_groups(mixture: Mixture, engine: str) -> None:
    if any(plan.num_groups for plan in mixture.plans.values()):
        raise UserError(
            f"{mixture.place} has language groups (group_nums), whose classifiers choose experts for a whole "
            f"text, which no architecture of {engine} does; train without group_nums, or run it as an adapter"
        )


def _cost(model_type: str, mixture: Mixture, tensors: dict[str, Source]) -> str:
    """What the checkpoint has more than the base and the adapter together."""
    base = sum(torch.Size(mixture.base.files.shape(name)).numel() for name in mixture.base.names)
    adapter, total = mixture.num_parameters(), num_parameters(tensors)
    why = "" if mixture.config.expert_rank is None else ", since experts of low rank become full ones"
    return (
        f"{total:,} parameters: {base:,} of the base, {adapter:,} of the adapter, and {total - base - adapter:,} that "
        f"{model_type} needs more{why}."
    )
