"""LLaMA-Factory: `finetuning_type: moe` in `llamafactory-cli train`, inert for every other method.

`neuronmoe_plugins.autoload` calls one `extend_*` function per host module, right after that module is imported. The
host's arguments are imported first: their import calls the first of these functions, which loads the modules below.
"""

import llamafactory.hparams  # noqa: F401
