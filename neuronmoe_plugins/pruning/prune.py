"""From an adapter and texts to the same adapter without the experts that the texts' languages hardly need."""

from __future__ import annotations

from typing import Any

from neuronmoe_plugins.files import new_directory, writing
from neuronmoe_plugins.models import ADAPTER, require_model
from neuronmoe_plugins.neurons.metrics import AVERAGE_PRECISION
from neuronmoe_plugins.neurons.sentences import prepare_sentences
from neuronmoe_plugins.pruning.options import PruneOptions
from neuronmoe_plugins.pruning.record import ExpertTrial, Pruning, language_losses
from neuronmoe_plugins.specialisation.specialise import require_mixture


def prune(options: PruneOptions, progress: bool = False) -> Pruning:
    """Write an adapter without the experts that the loss on every language can do without, and `pruning.json`.

    What is written is loaded again and measured before it appears; nothing appears that breaks the bound.

    Args:
        options: Which adapter, on which texts, and by how much the loss may rise.
        progress: Show progress bars on standard error.

    Raises:
        UserError: for bad input, or if no expert can be dropped within the bound.
    """
    require_model("ADAPTER", options.adapter, ADAPTER)
    require_mixture("ADAPTER", options.adapter, in_attention=True)
    sentences, description = prepare_sentences(options.analysis(), AVERAGE_PRECISION)
    # Here, and not above, so that bad input is answered before torch has been imported.
    from neuronmoe_plugins.neurons.activations import out_of_memory_is_an_error
    from neuronmoe_plugins.pruning.choosing import choose, save_within_bound

    with out_of_memory_is_an_error(options):
        measured, dropped, adapter = choose(options, sentences, progress)
        with writing(f"--output {options.output}"), new_directory(options.output) as folder:
            dropped, after = save_within_bound(options, sentences, measured, adapter, dropped, folder)
            pruning = Pruning(
                {**_settings(options), "num_layers": adapter.num_layers, **description},
                language_losses(sentences.languages, options.new_languages, measured.tokens, measured.before, after),
                [
                    ExpertTrial(*place, measured.shares[place].tolist(), losses.tolist(), place in dropped)
                    for place, losses in measured.alone.items()
                ],
                adapter.parameters,
                adapter.without(dropped).parameters,
            )
            pruning.save(folder)
    return pruning


def _settings(options: PruneOptions) -> dict[str, Any]:
    """What the numbers depend on; JSON values."""
    names = ("model", "adapter", "below", "max_tokens", "batch_size", "dtype")
    return {**{name: getattr(options, name) for name in names}, **options.analysis().sampling()}
