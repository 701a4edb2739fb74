"""NeuronMoE as plugins for PEFT, LLaMA-Factory and lm-eval, and what `neuronmoe` does as functions.

Importing this package makes the hosts know `moe`. It is what the `torch.backends` entry point does by itself at
`import torch`; doing both registers once. The functions and their options are imported at their first use:

    from pathlib import Path
    import neuronmoe_plugins as nm

    nm.prepare_data(Path("spec.yaml"), Path("data"))
    corpora = nm.parse_corpus_specs(["en=en.jsonl", "el=el.jsonl"])
    nm.analyze(nm.AnalyzeOptions("base-model", Path("run/analysis"), corpora))
    request = nm.AllocationRequest(Path("run/analysis"), source="en", targets=("el",))
    nm.allocate(request).save(Path("run/allocation.yaml"))
"""

from __future__ import annotations

import importlib
from typing import Any

from neuronmoe_plugins.autoload import register_hooks

__version__ = "0.1.0"

# Name -> where it is, as MODULE of this package or MODULE:NAME where it is called otherwise there.
_FACE = {
    "AllocationRequest": "allocation.request",
    "AnalyzeOptions": "neurons.options",
    "Bootstrap": "comparison",
    "Deepspeed": "machines",
    "MoeConfig": "tuner.config",
    "PruneOptions": "pruning",
    "RecipeRequest": "recipe_files",
    "SpecialiseOptions": "neurons.options",
    "UserError": "errors",
    "allocate": "allocation.allocate",
    "analyze": "neurons.analyze",
    "compare": "comparison",
    "hookimpl": "hookspecs",
    "parse_corpus_specs": "corpora",
    "prepare_data": "data.prepare",
    "prune": "pruning.prune",
    "recipe": "recipe_files:write_recipe",
    "specialise": "specialisation",
}

__all__ = ["__version__", *_FACE]

register_hooks()


def __getattr__(name: str) -> Any:
    if name not in _FACE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, original = _FACE[name].partition(":")
    thing = getattr(importlib.import_module(f"{__name__}.{module}"), original or name)
    globals()[name] = thing
    return thing


def __dir__() -> list[str]:
    return sorted({*globals(), *_FACE})
