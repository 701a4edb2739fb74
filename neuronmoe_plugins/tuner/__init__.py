"""The PEFT method `moe`.

peft is imported first: its import registers the method (see `neuronmoe_plugins.autoload`), which loads the modules
below.
"""

import peft  # noqa: F401  isort: skip

from neuronmoe_plugins.tuner.config import MoeConfig
from neuronmoe_plugins.tuner.layer import MoeLayer
from neuronmoe_plugins.tuner.mixture import MixtureLayer
from neuronmoe_plugins.tuner.model import MoeModel

__all__ = ["MixtureLayer", "MoeConfig", "MoeLayer", "MoeModel"]
