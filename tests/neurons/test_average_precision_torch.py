"""Average precision on a CUDA device: how much of the device's memory and of the host's time it takes."""

from __future__ import annotations

import warnings

import pytest
import torch

from neuronmoe_plugins.neurons.average_precision import average_precision_torch


def labelled(units: int, samples: int = 2000, num_languages: int = 6) -> tuple[torch.Tensor, torch.Tensor, int]:
    generator = torch.Generator("cuda").manual_seed(0)
    pooled = torch.randn(samples, units, generator=generator, device="cuda")
    return pooled, torch.arange(samples, device="cuda") % num_languages, num_languages


@pytest.mark.gpu
@pytest.mark.parametrize("samples", [2000, 10000])
def test_extra_memory_is_bounded(samples: int) -> None:
    """40M activations of 20,000 and 4,000 units, whose positions alone are 320 MB, fit into 256 MB beside them."""
    arguments = labelled(40_000_000 // samples, samples)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    average_precision_torch(*arguments)
    assert torch.cuda.max_memory_allocated() - before <= 256e6


@pytest.mark.gpu
def test_the_host_waits_as_often_for_few_units_as_for_many() -> None:
    waits = []
    for units in (100, 5000):
        arguments = labelled(units)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            average_precision_torch(*arguments)
            torch.cuda.set_sync_debug_mode("default")
        waits.append(sum("synchronizing CUDA operation" in str(warning.message) for warning in caught))
    assert 0 < waits[0] == waits[1]
