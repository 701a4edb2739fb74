"""Drops the experts of an adapter that the languages hardly need: `neuronmoe prune`."""

from neuronmoe_plugins.pruning.options import PruneOptions
from neuronmoe_plugins.pruning.record import ExpertTrial, LanguageLoss, Pruning

__all__ = ["ExpertTrial", "LanguageLoss", "PruneOptions", "Pruning"]
