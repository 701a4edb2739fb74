"""`llamafactory-cli chat` and `api` with `finetuning_type: moe`: what they answer is what PEFT's model generates."""

from __future__ import annotations

import io
import json
import socket
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from neuronmoe_plugins.errors import UserError

NEW_TOKENS = 24
PROMPT = "abcdefgh"


@pytest.fixture
def infer_args(tiny_model_dir: Path, stage1_adapter: Path) -> dict[str, Any]:
    return {
        "model_name_or_path": str(tiny_model_dir),
        "adapter_name_or_path": str(stage1_adapter),
        "finetuning_type": "moe",
        "template": "empty",
        "do_sample": False,
        "max_new_tokens": NEW_TOKENS,
    }


def greedy(model: Any, tokenizer: Any, prompt: str = PROMPT) -> str:
    encoding = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)  # as the template `empty`
    with torch.no_grad():
        tokens = model.eval().generate(**encoding, do_sample=False, max_new_tokens=NEW_TOKENS)
    return tokenizer.decode(tokens[0, encoding["input_ids"].shape[1] :], skip_special_tokens=True)


@pytest.fixture
def expected(tiny_model_dir: Path, stage1_adapter: Path) -> str:
    """The mixture's answer; not the base model's."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    of_base = greedy(base, tokenizer)
    text = greedy(PeftModel.from_pretrained(base, stage1_adapter), tokenizer)
    assert text and text != of_base
    return text


def command_line(monkeypatch: pytest.MonkeyPatch, folder: Path, args: dict[str, Any]) -> None:
    config = folder / "infer.yaml"
    config.write_text(json.dumps(args))
    monkeypatch.setattr("sys.argv", ["llamafactory-cli", str(config)])


def test_chat_answers_as_the_mixture(
    infer_args: dict[str, Any],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from llamafactory.chat.chat_model import run_chat

    command_line(monkeypatch, tmp_path, infer_args)
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{PROMPT}\nclear\n{PROMPT}\nexit\n"))
    run_chat()
    assert capsys.readouterr().out.count(f"Assistant: {expected}\n") == 2


@pytest.fixture
def server(
    infer_args: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[dict[str, Any]], dict[str, Any]]]:
    """`llamafactory-cli api` in a thread; a function that posts a chat completion."""
    import uvicorn
    from llamafactory.api import app

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    servers, started = [], threading.Event()

    def serve(application: Any, host: str, port: int) -> None:
        servers.append(uvicorn.Server(uvicorn.Config(application, host=host, port=port, log_level="warning")))
        application.router.on_startup.append(started.set)
        servers[0].run()

    def post(body: dict[str, Any]) -> dict[str, Any]:
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/chat/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)

    command_line(monkeypatch, tmp_path, infer_args)
    monkeypatch.setenv("API_HOST", "127.0.0.1")
    monkeypatch.setenv("API_PORT", str(port))
    monkeypatch.setattr(app.uvicorn, "run", serve)
    thread = threading.Thread(target=app.run_api)
    thread.start()
    while thread.is_alive() and not (servers and servers[0].started):
        thread.join(0.05)
    yield post
    servers[0].should_exit = True
    thread.join(30)
    assert not thread.is_alive()


def test_the_api_answers_as_the_mixture(server: Callable[[dict[str, Any]], dict[str, Any]], expected: str) -> None:
    answer = server({"model": "mixture", "messages": [{"role": "user", "content": PROMPT}]})
    assert answer["choices"][0]["message"]["content"] == expected
    assert answer["usage"]["completion_tokens"] <= NEW_TOKENS


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_served_is_frozen_and_in_the_bases_dtype(
    dtype: torch.dtype, infer_args: dict[str, Any], tiny_model_dir: Path, tmp_path: Path
) -> None:
    from llamafactory.chat import ChatModel

    AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=dtype).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_model_dir).save_pretrained(tmp_path)
    model = ChatModel(infer_args | {"model_name_or_path": str(tmp_path)}).engine.model
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"infer_backend": "vllm"}, "infer_backend: vllm knows no mixtures: set infer_backend: huggingface"),
        ({"infer_backend": "sglang"}, "set infer_backend: huggingface"),
        ({"adapter_name_or_path": None}, "set adapter_name_or_path"),
        ({"stage": "pt"}, "stage: pt does not chat"),
        ({"quantization_bit": 4}, "moe does not work with quantization_bit"),
    ],
)
def test_what_cannot_be_served_is_refused_at_once(
    wrong: dict[str, Any], message: str, infer_args: dict[str, Any]
) -> None:
    from llamafactory.chat import ChatModel

    with pytest.raises(UserError, match=message) as caught:
        ChatModel(infer_args | wrong)
    assert "\n" not in str(caught.value)
