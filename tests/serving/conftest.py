"""Nothing here runs without --serving: its environment is that of `make test-serving`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from export.making import make_adapter

__all__ = ["make_adapter"]


@pytest.fixture(autouse=True)
def _one_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keep vLLM's engines, its looks at models' classes and torch's compiler within the process; a server has all."""
    import torch._dynamo.config
    from vllm.model_executor.models import registry

    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    monkeypatch.setattr(registry, "_run_in_subprocess", lambda look: look())
    with torch._dynamo.config.patch(disable=True):
        yield
