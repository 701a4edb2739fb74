"""`vllm serve` and `lm_eval --model vllm` on an export, as users start them.

It is one as `neuronmoe`, whose class has to be found in each of the server's processes.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from neuronmoe_plugins.evaluation import write_tasks
from neuronmoe_plugins.export.export import export
from neuronmoe_plugins.export.request import ExportRequest
from runs import load, results_of, run_lm_eval
from serving.engines import CACHE_BYTES, MAX_TOKENS, SIZES, expected, in_fork
from tiny_llama import save_byte_tokenizer
from tuner.tiny import moe_config, randomised, tiny_model

pytestmark = pytest.mark.serving

BIN = Path(sys.executable).parent
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
TEXTS = ["Καλημέρα", "a much longer text than the other one", "x"]
OPTIONS = {"dtype": "float32", "max-model-len": MAX_TOKENS, "max-num-seqs": 4, "kv-cache-memory-bytes": CACHE_BYTES}


@dataclass(frozen=True)
class Made:
    """An adapter in `adapter` and its export in `out`, below a folder."""

    folder: Path
    model: PeftModel


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("served")
    vocab_size = save_byte_tokenizer(folder / "base")
    (folder / "base/chat_template.jinja").write_text(TEMPLATE)
    base = tiny_model(**SIZES, vocab_size=vocab_size, max_position_embeddings=MAX_TOKENS)
    base.save_pretrained(folder / "base")
    base.name_or_path = str(folder / "base")
    model = randomised(get_peft_model(base, moe_config(num_experts=[3, 1, 2])))
    model.save_pretrained(folder / "adapter")
    export(ExportRequest(str(folder / "adapter"), folder / "out", "neuronmoe"))
    return Made(folder, model)


@dataclass(frozen=True)
class Server:
    """A server of an export.

    Attributes:
        made: What it serves.
        process: Its first process, the leader of a session of its own.
        port: On the loopback.
    """

    made: Made
    process: subprocess.Popen[bytes]
    port: int

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps({"model": "greek", **body}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", data, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read() or "{}")

    def processes(self) -> list[psutil.Process]:
        """All of its session that are still there."""
        found = []
        for process in psutil.process_iter():
            try:
                if os.getsid(process.pid) == self.process.pid and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (ProcessLookupError, psutil.NoSuchProcess):
                continue
        return found


@pytest.fixture(scope="module")
def server(made: Made) -> Iterator[Server]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [word for name, value in OPTIONS.items() for word in (f"--{name}", str(value))]
    command = [BIN / "vllm", "serve", made.folder / "out", "--served-model-name", "greek", "--enforce-eager", *words]
    log = made.folder / "server.log"
    environment = {name: value for name, value in os.environ.items() if name != "VLLM_ENABLE_V1_MULTIPROCESSING"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=environment,
        )
    started = Server(made, process, port)
    try:
        _wait_for(started, log)
        yield started
    finally:
        if started.processes():
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_for(server: Server, log: Path) -> None:
    for _ in range(600):
        assert server.process.poll() is None, log.read_text(errors="replace")[-4000:]
        try:
            server.ask("/health")
            return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(1)
    raise AssertionError(log.read_text(errors="replace")[-4000:])


def test_the_api_completes_texts_as_the_adapter_does(server: Server) -> None:
    assert [model["id"] for model in server.ask("/v1/models")["data"]] == ["greek"]
    tokenizer = AutoTokenizer.from_pretrained(server.made.folder / "out")
    asked = {"temperature": 0, "max_tokens": 8, "logprobs": 1, "return_token_ids": True, "ignore_eos": True}
    answers = server.ask("/v1/completions", {"prompt": TEXTS, "echo": True, **asked})["choices"]
    prompts = [tokenizer(text)["input_ids"] for text in TEXTS]
    for answer, prompt, (likelihoods, greedy) in zip(
        answers, prompts, expected(server.made.model, prompts, 8), strict=True
    ):
        found = answer["logprobs"]["token_logprobs"]
        assert (torch.tensor(found[1 : len(prompt)]) - likelihoods).abs().max() < 1e-4
        assert answer["token_ids"] == greedy
        alone = server.ask("/v1/completions", {"prompt": prompt, **asked})["choices"][0]
        assert alone["token_ids"] == greedy


def test_it_chats(server: Server) -> None:
    tokenizer = AutoTokenizer.from_pretrained(server.made.folder / "out")
    messages = [{"role": "user", "content": TEXTS[0]}]
    asked = {"messages": messages, "temperature": 0, "max_tokens": 8, "return_token_ids": True, "ignore_eos": True}
    answer = server.ask("/v1/chat/completions", asked)
    prompt = tokenizer.apply_chat_template(messages, tokenize=False)
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    ((_, greedy),) = expected(server.made.model, [ids], 8)
    assert answer["choices"][0]["token_ids"] == greedy
    assert answer["choices"][0]["message"]["content"] == tokenizer.decode(greedy, skip_special_tokens=True)


def test_one_that_is_terminated_leaves_nothing(server: Server) -> None:
    assert len(server.processes()) > 1, "the engine has a process of its own"
    server.process.terminate()
    server.process.wait(timeout=120)
    for _ in range(60):
        if not server.processes():
            break
        time.sleep(1)
    assert not server.processes()
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", server.port))


def test_an_adapter_is_refused_in_one_line(made: Made) -> None:
    adapter = made.folder / "adapter"
    done = subprocess.run([BIN / "vllm", "serve", adapter], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        f"vllm: error: {adapter} is an adapter of mixtures, and vLLM serves whole models: run `neuronmoe export "
        f"{adapter} --output FOLDER`, and serve that folder"
    )
    assert "Traceback" not in done.stderr + done.stdout


def test_lm_eval_measures_what_it_does_of_the_adapter(made: Made, tmp_path: Path) -> None:
    documents = tmp_path / "el.jsonl"
    documents.write_text("".join(json.dumps({"text": text * 3}) + "\n" for text in TEXTS))
    (task,) = write_tasks(tmp_path / "tasks", {"el": documents})
    options = ",".join(f"{name.replace('-', '_')}={value}" for name, value in OPTIONS.items())
    common = f"pretrained={made.folder / 'out'},add_bos_token=False"
    models = {
        "hf": f"pretrained={made.folder / 'base'},peft={made.folder / 'adapter'},dtype=float32,add_bos_token=False",
        "vllm": f"{common},enforce_eager=True,{options}",
    }
    measured = {}
    for model, arguments in models.items():
        in_fork(run_lm_eval, tmp_path / "tasks", arguments, task, tmp_path / model, tmp_path / "cache", model=model)
        measured[model] = load(results_of(tmp_path / model))["results"][task]["bits_per_byte,none"]
    assert measured["vllm"] == pytest.approx(measured["hf"], abs=1e-5)


def test_unequal_layers_are_refused_where_vllm_ignores_their_bias(made: Made, tmp_path: Path) -> None:
    from vllm.engine.arg_utils import EngineArgs

    base = AutoModelForCausalLM.from_pretrained(made.folder / "base")
    randomised(get_peft_model(base, moe_config(num_experts=[3, 1, 2]))).save_pretrained(tmp_path / "adapter")
    exported = export(ExportRequest(str(tmp_path / "adapter"), tmp_path / "out"))
    assert exported.model_type == "ernie4_5_moe"
    with pytest.raises(ValueError, match=r"^.*out: vLLM on a CPU ignores .*; add --model-impl transformers \(model_im"):
        EngineArgs(str(tmp_path / "out"), max_model_len=MAX_TOKENS).create_engine_config()
    EngineArgs(str(tmp_path / "out"), max_model_len=MAX_TOKENS, model_impl="transformers").create_engine_config()
