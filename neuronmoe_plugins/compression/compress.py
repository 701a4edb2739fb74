"""`neuronmoe compress`: the low-rank experts that are nearest to those of an adapter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuronmoe_plugins.compression.record import CompressedLayer, Compression, CompressRequest
from neuronmoe_plugins.data.manifest import unseen_corpora
from neuronmoe_plugins.errors import UserError, one_line
from neuronmoe_plugins.files import new_directory, writing
from neuronmoe_plugins.models import (
    ADAPTER,
    ADAPTER_WEIGHTS,
    adapter_weights,
    local_file,
    read_adapter_config,
    require_model,
    weight_in_files,
    write_adapter,
)
from neuronmoe_plugins.neurons.metrics import AVERAGE_PRECISION
from neuronmoe_plugins.neurons.options import AnalyzeOptions
from neuronmoe_plugins.neurons.sentences import prepare_sentences
from neuronmoe_plugins.pruning.record import language_losses

if TYPE_CHECKING:
    from torch import Tensor

    from neuronmoe_plugins.neurons.arrays import ScoreArray
    from neuronmoe_plugins.tuner import MoeConfig
    from neuronmoe_plugins.tuner.plans import LayerPlan
    from neuronmoe_plugins.tuner.saved_experts import SavedExperts, SavedProjection

# Texts per language that the loss is measured on, and how many at once.
SAMPLES, BATCH_SIZE = 100, 8


def compress(request: CompressRequest, progress: bool = False) -> Compression:
    """Write an adapter whose experts have low rank, nearest to those of another in the Frobenius norm.

    Experts of low rank get another rank. Routers, classifiers, what is saved beside the mixtures and the rest of the
    configuration stay as they are. The files are read an expert's projection at a time.

    Args:
        request: What to compress, and how far.
        progress: Show a progress bar on standard error.

    Raises:
        UserError: if the adapter or the model cannot be read or do not fit each other, a rank is above the smaller
            side of a weight, or an expert has a bias of its own, for which experts of low rank have no place.
    """
    config = read_adapter_config(request.adapter / ADAPTER[0])
    model = _base_model(request, config)
    losses = None if request.data is None else _Losses(request, request.data, model)
    with adapter_weights(request.adapter) as file:
        low_rank, compression, tensors = _compress_file(request, config, model, file, progress)
    with writing(f"--output {request.output}"), new_directory(request.output) as folder:
        write_adapter(folder, tensors, low_rank)
        if losses is not None:
            measured = (losses.measure(adapter) for adapter in (request.adapter, folder))
            compression = losses.compared(compression, *measured)
        compression.save(folder, adapter=str(request.adapter), model=model)
    return compression


def _compress_file(
    request: CompressRequest, config: dict[str, Any], model: str, file: Any, progress: bool
) -> tuple[dict[str, Any], Compression, dict[str, Tensor]]:
    """The configuration of the compressed adapter, what is lost, and all of its tensors."""
    from neuronmoe_plugins.progress import track
    from neuronmoe_plugins.tuner.saved_experts import SavedExperts

    low_rank = config | {"expert_rank": request.ranks, "lora_alpha": None, "use_rslora": False}
    num_layers = _num_layers(model)
    before, after = _plans(config, ADAPTER[0], num_layers), _plans(low_rank, "--rank", num_layers)
    low_rank["lora_alpha"] = after[0].alphas()
    source = SavedExperts(file, str(request.adapter / ADAPTER_WEIGHTS), *before)
    read = _check(source, request, model, config, after[1])
    tensors = {name: file.get_tensor(name) for name in file.keys() if name not in source.names}  # noqa: SIM118
    layers = {
        layer: CompressedLayer(layer, plan.num_experts - 1, plan.expert_rank or 0)
        for layer, plan in sorted(after[1].items())
    }
    for each in track(source.projections, "Compressing experts", progress):
        own = layers[each.layer]
        delta, lost, factors = _compress(each, source, read, own.rank, after[1][each.layer].scaling)
        layers[each.layer] = replace(own, delta=own.delta + delta, lost=own.lost + lost)
        tensors |= factors
    size = sum(tensor.numel() for tensor in tensors.values())
    size_before = sum(prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return low_rank, Compression(list(layers.values()), size, size_before), tensors


class _Losses:
    """The loss on texts of a folder of `neuronmoe data`, by language.

    Args:
        request: What is compressed.
        data: The folder.
        model: The base model.

    Raises:
        UserError: if the folder or the model's tokenizer cannot be used.
    """

    def __init__(self, request: CompressRequest, data: Path, model: str) -> None:
        self._model, corpora = model, unseen_corpora(data)
        samples = min([SAMPLES, *(spec.drawn for spec in corpora if spec.drawn)])
        options = AnalyzeOptions(model, request.output, corpora, samples=samples)
        self._sentences, described = prepare_sentences(options, AVERAGE_PRECISION)
        self._texts = {"model": model, "max_tokens": options.max_tokens, **options.sampling(), **described}
        self._new = [spec.language for spec in corpora if spec.is_learned]

    def measure(self, adapter: Path) -> ScoreArray:
        """Load the model with an adapter; float64 (languages,), nats per token."""
        from neuronmoe_plugins.neurons.language_losses import LanguageLosses
        from neuronmoe_plugins.neurons.loading import default_device, load_model, require_places

        model = load_model(self._model, "float32", default_device(), str(adapter), "ADAPTER")
        require_places(model, self._sentences.token_ids)
        losses = LanguageLosses(model, self._sentences, BATCH_SIZE)
        self._tokens = losses.tokens
        return losses.measure()

    def compared(self, compression: Compression, before: ScoreArray, after: ScoreArray) -> Compression:
        """With both losses."""
        rows = language_losses(self._sentences.languages, self._new, self._tokens, before, after)
        return replace(compression, languages=rows, texts=self._texts)


def _base_model(request: CompressRequest, config: Mapping[str, Any]) -> str:
    """The base model's name; raises `UserError` if there can be none of it."""
    named, file = config.get("base_model_name_or_path"), request.adapter / ADAPTER[0]
    if request.model is None and not named:
        raise UserError(f"{file} names no base model; name it with --model")
    model = request.model or str(named)
    require_model("--model" if request.model else f"{file}: base_model_name_or_path", model)
    return model


def _num_layers(model: str) -> int:
    """Decoder layers of the base."""
    from transformers import AutoConfig

    try:
        return int(AutoConfig.from_pretrained(model).get_text_config().num_hidden_layers)
    except Exception as error:  # whatever transformers makes of a damaged file
        raise UserError(f"--model {model} cannot be loaded: {one_line(error)}") from error


def _plans(config: Mapping[str, Any], where: str, num_layers: int) -> tuple[MoeConfig, dict[int, LayerPlan]]:
    """A configuration, and what it makes of the base's layers; raises `UserError` that begins with `where`."""
    from neuronmoe_plugins.tuner import MoeConfig

    try:
        made: MoeConfig = MoeConfig.from_peft_type(**config)
        return made, made.layer_plans(num_layers)
    except (ValueError, TypeError) as error:
        raise UserError(f"{where}: {one_line(error)}") from error


def _check(
    source: SavedExperts, request: CompressRequest, model: str, config: Mapping[str, Any], plans: dict[int, LayerPlan]
) -> Callable[[str], Any]:
    """What reads the base's weights, after all that could be wrong has been looked at."""
    from neuronmoe_plugins.tuner.fingerprint import require_base

    for each in source.projections:
        rank, (out, into) = plans[each.layer].expert_rank or 0, source.shape(each)
        if rank > min(out, into):
            raise UserError(
                f"--rank is {rank}, but {each.projection} of layer {each.layer} is {out} x {into}: give at most "
                f"{min(out, into)}"
            )
    saved = config.get("base_fingerprint") or {}
    read = _reader(model, next(iter(saved), f"{source.projections[0].base_name}.weight"))
    require_base(f"{request.adapter} is an adapter of another model", saved, model, read)
    source.check_base(read)
    return read


def _reader(model: str, name: str) -> Callable[[str], Any]:
    """Reads a model's weights from its files, or, where these have none of that name, from the whole model."""
    read = partial(weight_in_files, partial(local_file, model))
    if read(name) is not None:
        return read
    from neuronmoe_plugins.neurons.loading import load_model
    from neuronmoe_plugins.tuner.fingerprint import read_weight

    return partial(read_weight, load_model(model, "float32", "cpu", needs_head=False))


def _compress(
    each: SavedProjection, source: SavedExperts, read: Callable[[str], Any], rank: int, scaling: float
) -> tuple[float, float, dict[str, Tensor]]:
    """One projection of a layer's experts: squared norms of all and of what is lost, and A and B by their names."""
    import torch

    from neuronmoe_plugins.neurons.loading import default_device
    from neuronmoe_plugins.tuner.experts.stacks import DOWN, UP
    from neuronmoe_plugins.tuner.experts.weights import nearest_low_rank

    factors: list[tuple[Tensor, Tensor]] = []
    norm, lost, device = 0.0, 0.0, default_device()
    for delta, dtype in source.deltas(each, read):
        delta = delta.to(device)
        down, up = (factor.to(dtype) for factor in nearest_low_rank(delta, rank, scaling))
        left = delta - scaling * up.to(delta.dtype) @ down.to(delta.dtype)
        norm += delta.square().sum(dtype=torch.float64).item()
        lost += left.square().sum(dtype=torch.float64).item()
        factors.append((down.cpu(), up.cpu()))
    downs, ups = zip(*factors, strict=True)
    return norm, lost, {f"{each.name}{DOWN}": torch.stack(downs), f"{each.name}{UP}": torch.stack(ups)}
