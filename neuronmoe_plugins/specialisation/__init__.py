"""What the experts of an extended model specialise in: language-specific neurons and routing (paper, section 6.1)."""

from neuronmoe_plugins.neurons.options import SpecialiseOptions
from neuronmoe_plugins.specialisation.specialisation import ExpertScores, LanguageRouting, Specialisation
from neuronmoe_plugins.specialisation.specialise import specialise

__all__ = ["ExpertScores", "LanguageRouting", "Specialisation", "SpecialiseOptions", "specialise"]
