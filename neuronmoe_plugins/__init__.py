"""NeuronMoE as plugins for PEFT, LLaMA-Factory and lm-eval.

Importing this package makes the hosts know `moe`. It is what the `torch.backends` entry point does by itself at
`import torch`; doing both registers once.
"""

from neuronmoe_plugins.autoload import register_hooks

__version__ = "0.1.0"

register_hooks()
