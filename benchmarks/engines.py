"""What runs a mixture, asked the same: transformers, llama.cpp, and vLLM in an environment of its own.

`PYTHON -m benchmarks.engines FOLDER`, by the Python of that environment, answers for vLLM what comes as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any, Protocol

# Seconds, and those that this process computed, which other work on the machine hardly changes; with one thread they
# are the same on a quiet one.
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


class Engine(Protocol):
    """A loaded model."""

    def likelihoods(self, tokens: list[int]) -> list[float]:
        """Natural logarithms of the probability of each token but the first, after those before it."""

    def speeds(self, tokens: list[int], new_tokens: int, clock: str) -> tuple[float, float]:
        """Tokens per second of a clock of `CLOCKS`: of reading these, and of as many greedy ones after them."""

    def close(self) -> None:
        """Let its memory go."""


class Transformers:
    """A model of transformers, or a PEFT model around one, on the CPU.

    Args:
        model: In evaluation mode.
    """

    def __init__(self, model: Any) -> None:
        self.model = model

    def logits(self, tokens: list[int]) -> Any:
        """(tokens, vocabulary)."""
        import torch

        with torch.inference_mode():
            return self.model(input_ids=torch.tensor([tokens])).logits[0]

    def likelihoods(self, tokens: list[int]) -> list[float]:
        """As `Engine` says."""
        import torch

        logarithms = self.logits(tokens)[:-1].log_softmax(-1)
        found: list[float] = logarithms.gather(1, torch.tensor(tokens[1:])[:, None])[:, 0].tolist()
        return found

    def speeds(self, tokens: list[int], new_tokens: int, clock: str) -> tuple[float, float]:
        """As `Engine` says; the steps themselves, without `generate`."""
        import torch

        now = CLOCKS[clock]
        with torch.inference_mode():
            start = now()
            outputs = self.model(input_ids=torch.tensor([tokens]), use_cache=True, logits_to_keep=1)
            read = now()
            for _ in range(new_tokens):
                token = outputs.logits[:, -1:].argmax(-1)
                outputs = self.model(input_ids=token, past_key_values=outputs.past_key_values, use_cache=True)
            written = now()
        return len(tokens) / (read - start), new_tokens / (written - read)

    def close(self) -> None:
        """As `Engine` says."""
        del self.model


class LlamaCpp:
    """llama.cpp's server in this process, with a cache in float32, without flash attention.

    Args:
        file: A GGUF file.
        context: Of so many tokens.
        threads: It computes with.
    """

    # A token that is a whole character.
    WHOLE = "!"

    def __init__(self, file: Path, context: int, threads: int = 1) -> None:
        import xllamacpp

        settings = xllamacpp.CommonParams()
        settings.model.path = str(file)
        settings.n_ctx, settings.n_batch, settings.n_parallel = context, context, 1
        settings.warmup, settings.port, settings.verbosity = False, 0, 0
        settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = threads
        settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.server = xllamacpp.Server(settings)

    def post(self, path: str, **content: Any) -> Any:
        """What it answers to a request."""
        with urllib.request.urlopen(self._request(path, **content)) as answer:
            return json.load(answer)

    def _request(self, path: str, **content: Any) -> urllib.request.Request:
        body, kind = json.dumps(content).encode(), {"Content-Type": "application/json"}
        return urllib.request.Request(self.server.listening_address + path, body, kind)

    def _forced(self, tokens: list[int]) -> dict[str, Any]:
        """Let it write whole characters after these: it says nothing of a step whose token is a part of one."""
        whole = self.post("/tokenize", content=self.WHOLE, add_special=False)["tokens"][0]
        return {"prompt": tokens, "logit_bias": [[whole, 1000]]}

    def logarithms(self, tokens: list[int], vocab_size: int) -> dict[int, float]:
        """Token -> logarithm of its probability after these."""
        answer = self.post("/completion", **self._forced(tokens), n_predict=1, n_probs=vocab_size)
        return {each["id"]: each["logprob"] for each in answer["completion_probabilities"][0]["top_logprobs"]}

    def likelihoods(self, tokens: list[int]) -> list[float]:
        """As `Engine` says, a request for each."""
        most = 2**31 - 1
        return [self.logarithms(tokens[:i], most)[tokens[i]] for i in range(1, len(tokens))]

    def speeds(self, tokens: list[int], new_tokens: int, clock: str) -> tuple[float, float]:
        """As `Engine` says."""
        wanted = self._forced(tokens) | {"n_predict": new_tokens + 1, "stream": True, "cache_prompt": False}
        request, now = self._request("/completion", **wanted), CLOCKS[clock]
        start = now()
        with urllib.request.urlopen(request) as answer:
            answer.readline()
            read = now()
            answer.read()
        return len(tokens) / (read - start), new_tokens / (now() - read)

    def close(self) -> None:
        """As `Engine` says."""
        del self.server


class VllmElsewhere:
    """vLLM in a process of an environment that has it.

    Args:
        python: That environment's.
        folder: The checkpoint.
        context: Of so many tokens.
    """

    def __init__(self, python: Path, folder: Path, context: int) -> None:
        command = [str(python), "-m", "benchmarks.engines", str(folder), str(context)]
        # In one process, whose clock then has all that it computes.
        environment = os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def _ask(self, *question: Any) -> Any:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("ANSWER "):  # among what vLLM says
                return json.loads(line.removeprefix("ANSWER "))
        raise RuntimeError(f"vLLM ended with {self.process.wait()}; what it said is above")

    def likelihoods(self, tokens: list[int]) -> list[float]:
        """As `Engine` says."""
        found: list[float] = self._ask("likelihoods", tokens)
        return found

    def speeds(self, tokens: list[int], new_tokens: int, clock: str) -> tuple[float, float]:
        """As `Engine` says."""
        read, written = self._ask("speeds", tokens, new_tokens, clock)
        return read, written

    def close(self) -> None:
        """As `Engine` says."""
        self.process.communicate()


class Vllm:
    """vLLM in this process, in float32, without compilation.

    Args:
        folder: The checkpoint.
        context: Of so many tokens.
    """

    def __init__(self, folder: str, context: int) -> None:
        from vllm import LLM

        kind = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))["model_type"]
        self.engine: Any = LLM(
            folder,
            # vLLM's own class of that architecture is wrong on a CPU (docs/serving.md).
            model_impl="transformers" if kind == "ernie4_5_moe" else "auto",
            dtype="float32",
            enforce_eager=True,
            max_model_len=context,
            max_num_seqs=1,
            enable_prefix_caching=False,
            kv_cache_memory_bytes=2**28,
        )

    def _generate(self, tokens: list[int], clock: str = "wall", **settings: Any) -> tuple[Any, float]:
        from vllm import SamplingParams, TokensPrompt

        wanted = SamplingParams(temperature=0, detokenize=False, ignore_eos=True, **settings)
        start = CLOCKS[clock]()
        found = self.engine.generate([TokensPrompt(prompt_token_ids=tokens)], wanted, use_tqdm=False)
        return found[0], CLOCKS[clock]() - start

    def likelihoods(self, tokens: list[int]) -> list[float]:
        """As `Engine` says."""
        found, _ = self._generate(tokens, max_tokens=1, prompt_logprobs=0)
        return [at[token].logprob for token, at in zip(tokens[1:], found.prompt_logprobs[1:], strict=True)]

    def speeds(self, tokens: list[int], new_tokens: int, clock: str) -> tuple[float, float]:
        """As `Engine` says."""
        _, read = self._generate(tokens, clock, max_tokens=1)
        _, whole = self._generate(tokens, clock, max_tokens=new_tokens + 1)
        return len(tokens) / read, new_tokens / (whole - read)


def main() -> None:
    """Answer questions, a line of JSON each: a method of `Vllm` and its arguments."""
    engine = Vllm(sys.argv[1], int(sys.argv[2]))
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        sys.stdout.write(f"ANSWER {json.dumps(getattr(engine, name)(*arguments))}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
