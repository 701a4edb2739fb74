"""Chooses the experts to drop, writes the adapter without them, and measures what was written."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from pathlib import Path

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.neurons.arrays import ScoreArray
from neuronmoe_plugins.neurons.language_losses import LanguageLosses
from neuronmoe_plugins.neurons.loading import default_device, load_model, require_places
from neuronmoe_plugins.neurons.sentences import TokenizedSentences
from neuronmoe_plugins.progress import track
from neuronmoe_plugins.pruning.adapter import AdapterInFile
from neuronmoe_plugins.pruning.leaving_out import LeavingOut, Measured, Place
from neuronmoe_plugins.pruning.options import PruneOptions

# Shares of a loss that are rounding: what no token chose can be dropped with a bound of 0, too.
ROUNDING = {"float32": 1e-6, "bfloat16": 1e-4, "float16": 1e-4}


def choose(
    options: PruneOptions, sentences: TokenizedSentences, progress: bool
) -> tuple[Measured, list[Place], AdapterInFile]:
    """Load the model, and give back its memory.

    Returns:
        what each expert is good for, those to drop, the least missed first, and the adapter.

    Raises:
        UserError: if the model or adapter cannot be loaded, has no mixture, or gives no finite loss.
    """
    device = options.device or default_device()
    model = load_model(options.model, options.dtype, device, options.adapter, "ADAPTER")
    require_places(model, sentences.token_ids)
    leaving_out = LeavingOut(model, sentences, options.batch_size)
    measured = leaving_out.each_alone(progress)
    dropped = choose_experts(measured, _bound(options), leaving_out.together, progress)
    return measured, dropped, AdapterInFile.read(options.adapter, model)


def choose_experts(
    measured: Measured, bound: float, together: Callable[[Sequence[Place]], ScoreArray], progress: bool = False
) -> list[Place]:
    """Which experts to drop, the first being the least missed.

    After those that no token chose, the others are tried in the order of what each costs alone. One is dropped if
    without it and all before it the loss on every language is within the bound; it is only tried where the costs,
    added up, say so. The last expert of all stays: an adapter has one.

    Args:
        measured: What each of them is good for.
        bound: By how much of itself the loss on a language may rise, in all.
        together: Measures the loss without several experts.
        progress: Show a progress bar on standard error.
    """
    dropped, now = list(measured.unused[: len(measured.alone) - 1]), measured.before
    used = [place for place in measured.alone if place not in dropped]
    used.sort(key=lambda place: measured.rise(measured.alone[place]))
    for place in track(used, "Dropping experts", progress):
        if len(dropped) == len(measured.alone) - 1:
            continue
        if measured.rise(now + measured.alone[place] - measured.before) > bound:
            continue
        losses = together([*dropped, place]) if dropped else measured.alone[place]
        if measured.rise(losses) <= bound:
            dropped.append(place)
            now = losses
    return dropped


def save_within_bound(
    options: PruneOptions,
    sentences: TokenizedSentences,
    measured: Measured,
    adapter: AdapterInFile,
    dropped: list[Place],
    folder: Path,
) -> tuple[list[Place], ScoreArray]:
    """Write the adapter without these experts, and measure what was written; those dropped last come back if need be.

    Returns:
        what was dropped, and the loss, float64 (languages,).

    Raises:
        UserError: if nothing can be dropped.
    """
    while dropped:
        adapter.without(dropped).save(folder)
        gc.collect()  # a model that is no longer used, whose modules know each other
        model = load_model(options.model, options.dtype, options.device or default_device(), str(folder), "--output")
        after = LanguageLosses(model, sentences, options.batch_size).measure()
        if measured.rise(after) <= _bound(options):
            return dropped, after
        dropped = dropped[:-1]
    if len(measured.alone) == 1:
        raise UserError(
            f"{options.adapter} has one expert beside the base model's MLPs, and without it would be no adapter; "
            "nothing is written"
        )
    (layer, expert), least = min(measured.alone.items(), key=lambda item: measured.rise(item[1]))
    raise UserError(
        f"no expert of {options.adapter} can go with --below {options.below:g}: without the least needed, expert "
        f"{expert} of layer {layer}, the loss on a language rises by {measured.rise(least):.2g} of itself; nothing is "
        "written"
    )


def _bound(options: PruneOptions) -> float:
    return max(options.below, ROUNDING[options.dtype])
