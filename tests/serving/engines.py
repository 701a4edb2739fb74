"""vLLM in forks of the tests' own process, with as little memory as a tiny model needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import torch

Answer = TypeVar("Answer")
CACHE_BYTES = 32 * 2**20
MAX_TOKENS = 128
# Sizes that vLLM's kernels for a CPU take: heads of 32, hidden states in blocks of 32.
SIZES = {
    "hidden_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "initializer_range": 0.15,
}
OPTIONS = {
    "dtype": "float32",
    "enforce_eager": True,
    "max_model_len": MAX_TOKENS,
    "max_num_seqs": 4,
    "kv_cache_memory_bytes": CACHE_BYTES,
}


def in_fork(function: Callable[..., Answer], *args: Any, **options: Any) -> Answer:
    """Call a function in a fork of this process: what an engine leaves in transformers' classes goes with it.

    A fresh process would import vLLM for half a minute. Errors come as `RuntimeError`: not all can be pickled.
    """
    import vllm  # noqa: F401 (once for all forks)

    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
        return pool.submit(_with_errors, function, *args, **options).result()


def _with_errors(function: Callable[..., Answer], *args: Any, **options: Any) -> Answer:
    try:
        return function(*args, **options)
    except Exception as error:
        raise RuntimeError(f"{type(error).__name__}: {error}") from None


def generate(
    folder: Path, prompts: Sequence[Sequence[int]], tokens: int, **options: Any
) -> list[tuple[list[float], list[int]]]:
    """Of each prompt, in one batch: the log likelihoods of its tokens after the first, and the greedy text."""
    from vllm import LLM, SamplingParams, TokensPrompt

    served = LLM(str(folder), **OPTIONS | {"skip_tokenizer_init": True} | options)
    wanted = SamplingParams(temperature=0, max_tokens=tokens, prompt_logprobs=1, detokenize=False, ignore_eos=True)
    found = served.generate([TokensPrompt(prompt_token_ids=list(prompt)) for prompt in prompts], wanted, use_tqdm=False)
    answers = []
    for prompt, one in zip(prompts, found, strict=True):
        likelihoods = [at[token].logprob for token, at in zip(prompt[1:], one.prompt_logprobs[1:], strict=True)]
        answers.append((likelihoods, list(one.outputs[0].token_ids)))
    return answers


def expected(model: Any, prompts: Sequence[Sequence[int]], tokens: int) -> list[tuple[torch.Tensor, list[int]]]:
    """The same of a model of transformers, a prompt at a time."""
    answers = []
    for prompt in prompts:
        ids = torch.tensor([list(prompt)])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
            text = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=tokens,
                do_sample=False,
                eos_token_id=None,
            )
        answers.append((logits.gather(1, ids[0, 1:, None])[:, 0], text[0, ids.shape[1] :].tolist()))
    return answers
