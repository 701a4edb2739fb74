"""This package's own architecture as a container: any list of counts, on any base, without padding."""

from __future__ import annotations

from functools import partial, reduce
from typing import Any

import torch

from neuronmoe_plugins.architecture.config import ARCHITECTURE, COPIED, FORMAT_VERSION, MODEL_TYPE
from neuronmoe_plugins.architecture.model import stacked_parts
from neuronmoe_plugins.export.containers import Container, Tensors
from neuronmoe_plugins.export.mixture import Mixture
from neuronmoe_plugins.export.sources import Source
from neuronmoe_plugins.host_versions import rotary_settings
from neuronmoe_plugins.models import MODEL, local_file
from neuronmoe_plugins.reading import read_json_object

# Of the base's config.json: what is another model's, or says how that was written.
LEFT_OUT = {"auto_map", "_name_or_path", "transformers_version", "torch_dtype", "dtype"}


class NeuronMoe(Container):
    """`neuronmoe`: all of the base as it is, and the experts of each mixture layer in one tensor per linear layer."""

    model_type = MODEL_TYPE
    architecture = ARCHITECTURE
    families = ()
    needs = f"""transformers finds
it wherever that package is installed, and says without it that it does not know the model type `{MODEL_TYPE}`:

```console
pip install neuronmoe-plugins
```"""

    def refusal(self, mixture: Mixture) -> str | None:
        """None: whatever base a mixture can be on has a class of transformers, and an MLP that is replaced."""
        return None

    def own_refusal(self, mixture: Mixture) -> str | None:
        """None."""
        return None

    def own_config(self, mixture: Mixture) -> dict[str, Any]:
        """The counts, and the base's configuration."""
        path = local_file(mixture.base.name, MODEL[0])
        assert path is not None, "its configuration was read before"
        given = read_json_object(path, "it is the base model's")
        base = {key: value for key, value in given.items() if key not in LEFT_OUT}
        settings = base.get("rope_parameters")
        if isinstance(settings, dict) and "rope_theta" in settings:
            # As transformers 4 reads them, too.
            base["rope_theta"], base["rope_scaling"] = rotary_settings(mixture.base.config)
        return {
            "format_version": FORMAT_VERSION,
            "text_config": base,
            "experts_per_layer": list(mixture.counts.values()),
            "num_experts_per_tok": mixture.config.topk,
        }

    def config(self, mixture: Mixture, dtype: torch.dtype) -> dict[str, Any]:
        """config.json."""
        return {
            "architectures": [self.architecture],
            "model_type": self.model_type,
            "torch_dtype": str(dtype).removeprefix("torch."),
            **self.own_config(mixture),
            **{key: getattr(mixture.base.config, key, None) for key in COPIED},
        }

    def sparse_layers(self, mixture: Mixture) -> set[int]:
        """The mixtures."""
        return set(mixture.plans)

    def block(self, mixture: Mixture, layer: int) -> Tensors:
        """The router, and the experts' weights and biases in stacks."""
        yield "gate.weight", mixture.router(layer)
        for name, parts in stacked_parts(mixture.base.mlps[layer].family).items():
            count = mixture.plans[layer].num_experts
            experts = [[mixture.expert(layer, expert, part) for part in parts] for expert in range(count)]
            yield f"experts.{name}", _stack(experts)
            biases = [[mixture.bias(layer, expert, part) for part in parts] for expert in range(count)]
            if biases[0][0] is not None:
                yield f"experts.{name}_bias", _stack(biases)


def _stack(experts: list[list[Any]]) -> Source:
    """One expert's tensors beside each other along their outputs, and all experts in a stack."""
    rows = sum(source.shape[0] for source in experts[0])
    return Source((len(experts), rows, *experts[0][0].shape[1:]), partial(_read, experts))


def _read(experts: list[list[Source]]) -> torch.Tensor:
    read = [torch.cat([source.read() for source in parts]) for parts in experts]
    # The base's dtype need not be that of the others; of two of 16 bits neither holds the other.
    dtype = reduce(torch.promote_types, (tensor.dtype for tensor in read))
    return torch.stack([tensor.to(dtype) for tensor in read])
