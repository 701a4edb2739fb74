"""LLaMA-Factory: `finetuning_type: moe` in `llamafactory-cli train`, inert for every other method.

`neuronmoe_plugins.autoload` calls one `extend_*` function per host module, right after that module is imported.
"""
