"""Fixtures that every room's tests share: one tiny Llama with its tokenizer, made on the spot."""

from __future__ import annotations

import importlib.metadata
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import fresh_processes
from forking.commands import forked_commands
from tiny_llama import save_byte_tokenizer, save_tiny_llama

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
fresh_processes.limit()
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As in all that the background of a shell starts; the tests interrupt themselves and their commands.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--demo", action="store_true", help="run the tests that download the demo's model and texts")
    parser.addoption("--serving", action="store_true", help="run the tests that need vLLM, as `make test-serving` does")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip, with the reason, what this machine or this run cannot do."""
    reasons = {
        "demo": "" if config.getoption("--demo") else "downloads the demo's model and texts: run with --demo",
        "serving": ""
        if config.getoption("--serving")
        else "needs vLLM in an environment of its own: make test-serving",
    }
    if any(item.get_closest_marker("gpu") for item in items):
        import torch

        reasons["gpu"] = "" if torch.cuda.is_available() else "needs a CUDA device"
    for item in items:
        for marker, reason in reasons.items():
            if reason and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def _one_environment() -> Iterator[None]:
    """Put back `os.environ`, which `datasets` leaves replaced by a copy after it has mapped in several processes.

    Who holds the first one, as rich does, would not see what later tests put into the other.
    """
    environment = os.environ
    yield
    os.environ = environment  # noqa: B003


@pytest.fixture(scope="session")
def forked_python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a `python` that is forked from a process which has imported PEFT and nothing of this package."""
    modules = ["peft", "transformers.models.llama.modeling_llama", "torch.distributed.run"]
    with forked_commands(tmp_path_factory.mktemp("python"), modules, ["torchrun"]) as commands:
        yield commands


@pytest.fixture
def install_plugins(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Takes stand-ins for entry points, which are then those of the installed plugins."""
    from neuronmoe_plugins import plugins
    from neuronmoe_plugins.hookspecs import NAMESPACE

    found = importlib.metadata.entry_points

    def install(*installed: Any) -> None:
        # What is imported meanwhile keeps this function: pydantic, which has plugins of its own.
        def entry_points(**chosen: str) -> Any:
            return installed if chosen == {"group": NAMESPACE} else found(**chosen)

        monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
        plugins.plugin_manager.cache_clear()

    yield install
    plugins.plugin_manager.cache_clear()


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random 4-layer Llama (hidden 32, MLP 48) and a byte-level tokenizer that adds `<s>`."""
    folder = tmp_path_factory.mktemp("tiny-llama")
    vocab_size = save_byte_tokenizer(folder)
    save_tiny_llama(folder, vocab_size)
    return folder


@pytest.fixture(scope="session")
def wide_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with an MLP of 400, and so with more neurons than the top 1000 of two languages: its layers differ."""
    folder = tmp_path_factory.mktemp("wide-llama")
    save_tiny_llama(folder, save_byte_tokenizer(folder), intermediate_size=400)
    return folder


@pytest.fixture(scope="session")
def named_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a model of 4 layers that has little more than its files' names, for what is refused before it loads."""
    folder = tmp_path_factory.mktemp("named")
    (folder / "config.json").write_text('{"model_type": "llama", "num_hidden_layers": 4}')
    (folder / "tokenizer_config.json").write_text("{}")
    return folder
