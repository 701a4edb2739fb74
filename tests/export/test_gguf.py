"""What llama.cpp computes of a GGUF export is what the adapter does; and what is refused, with nothing written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader, dequantize
from peft import PeftModel
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from transformers import AutoTokenizer
from typer.testing import CliRunner

from benchmarks.engines import LlamaCpp
from export.making import MakeAdapter
from export.test_containers import ROTARY, SLIDING
from neuronmoe_plugins import cli
from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.export.export import export
from neuronmoe_plugins.export.gguf_tokenizer import PRE_TOKENIZERS
from neuronmoe_plugins.export.request import ExportRequest
from tiny_llama import save_byte_tokenizer

PROMPT = [1, 70, 199, 12, 255, 90, 33, 150]
TEXT = "Καλημέρα κόσμε, it's 123.5 €  \n\n  <s> γειά"
# Rows of 32, which Q8_0 packs.
WIDE: dict[str, Any] = {"vocab_size": 280, "hidden_size": 32, "intermediate_size": 64}
# What it becomes, of which family, how the base and how the adapter are configured.
EXACT: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "llama with a dense layer": ("llama", "llama", {"tie_word_embeddings": True}, {"num_experts": [3, 1, 3]}),
    "scaled positions": ("llama", "llama", {"rope_parameters": ROTARY}, {"expert_rank": 4}),
    "qwen2": ("llama", "qwen2", {}, {"num_experts": [3, 3, 1]}),
    "qwen3": ("qwen3moe", "qwen3", {"tie_word_embeddings": True}, {"num_experts": [1, 3, 3], "topk": 4}),
    "an uneven mistral": ("ernie4_5-moe", "mistral", {"sliding_window": None}, {"num_experts": [1, 4, 3]}),
    "an uneven qwen2": ("ernie4_5-moe", "qwen2", {"tie_word_embeddings": True}, {"num_experts": [4, 2, 1]}),
}


def llama_cpp(file: Path) -> LlamaCpp:
    pytest.importorskip("xllamacpp", reason="llama.cpp's bindings are not installed")
    return LlamaCpp(file, context=64)


def logarithms(engine: LlamaCpp, tokens: list[int]) -> torch.Tensor:
    """Of the probabilities of all tokens after these, (vocabulary,)."""
    found = engine.logarithms(tokens, WIDE["vocab_size"])
    return torch.tensor([found[token] for token in range(WIDE["vocab_size"])])


@pytest.fixture
def make_written(make_adapter: MakeAdapter, tmp_path: Path) -> Callable[..., PeftModel]:
    """Makes an adapter whose base has a tokenizer, and returns the model."""

    def make(family: str, base: dict[str, Any], **options: Any) -> PeftModel:
        model = make_adapter(family, WIDE | base, **options)
        save_byte_tokenizer(tmp_path / "base")
        add_merges(tmp_path / "base/tokenizer.json")
        return model

    return make


def add_merges(path: Path) -> None:
    """Over what is cut differently: digits, blanks, signs before letters."""
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    for left, right in ("12", "Ġ1", "ĠĠ", "ĊĊ", ".5", ("12", "3"), "'s", "'t", "Îº", "ÏĮ"):
        content["model"]["merges"].append([left, right])
        vocabulary[left + right] = len(vocabulary)
    path.write_text(json.dumps(content, indent=2))


def write(folder: Path, dtype: str = "float32") -> str:
    return export(ExportRequest(str(folder / "adapter"), folder / "out", "gguf", dtype=dtype)).model_type


@pytest.mark.parametrize("case", EXACT)
def test_llama_cpp_gives_the_adapters_probabilities(
    case: str, make_written: Callable[..., PeftModel], tmp_path: Path
) -> None:
    architecture, family, base, options = EXACT[case]
    model = make_written(family, base, **options)
    assert write(tmp_path) == f"{architecture} of llama.cpp"
    engine = llama_cpp(tmp_path / "out/model.gguf")
    found = torch.stack([logarithms(engine, PROMPT[: i + 1]) for i in range(len(PROMPT))])
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([PROMPT])).logits[0].log_softmax(-1)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


def test_eight_bits_a_weight(make_written: Callable[..., PeftModel], tmp_path: Path) -> None:
    model = make_written("llama", {}, num_experts=[3, 1, 3])
    write(tmp_path, "q8_0")
    read = {
        each.name: dequantize(each.data, each.tensor_type) for each in GGUFReader(tmp_path / "out/model.gguf").tensors
    }
    stack = model.base_model.model.model.layers[2].mlp.moe_up_proj.default.detach().numpy()
    blocks = stack.reshape(*stack.shape[:2], -1, 32)
    error = np.abs(read["blk.2.ffn_up_exps.weight"][1:].reshape(blocks.shape) - blocks)
    assert error.max() > 0
    assert (error <= np.abs(blocks).max(-1, keepdims=True) * (0.5 / 127 + 2e-3)).all()
    router = model.base_model.model.model.layers[2].mlp.moe_router.default.weight.detach().numpy()
    assert (read["blk.2.ffn_gate_inp.weight"] == router).all()
    found = logarithms(llama_cpp(tmp_path / "out/model.gguf"), PROMPT)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([PROMPT])).logits[0, -1]
    assert (found - logits.log_softmax(-1)).abs().max() < 0.05 * logits.abs().max()


CUTS: dict[str, Any] = {
    "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
}
for (cut, *_), name in PRE_TOKENIZERS.items():
    if cut.startswith("Split"):
        split = pre_tokenizers.Split(Regex(cut[len("Split ") : -len(" Isolated False")]), "isolated")
        CUTS[name] = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def edit_tokenizer(folder: Path, edit: Callable[[Tokenizer], object]) -> None:
    path = str(folder / "base/tokenizer.json")
    tokenizer = Tokenizer.from_file(path)
    edit(tokenizer)
    tokenizer.save(path)


@pytest.mark.parametrize("name", CUTS)
def test_llama_cpp_cuts_the_same_tokens(name: str, make_written: Callable[..., PeftModel], tmp_path: Path) -> None:
    make_written("llama", {})
    path = tmp_path / "base/tokenizer.json"
    path.write_text(
        path.read_text().replace('"ignore_merges": false', f'"ignore_merges": {json.dumps(name == "llama-bpe")}')
    )
    edit_tokenizer(tmp_path, lambda tokenizer: setattr(tokenizer, "pre_tokenizer", CUTS[name]))
    write(tmp_path)
    engine = llama_cpp(tmp_path / "out/model.gguf")
    found = engine.post("/tokenize", content=TEXT, add_special=True, parse_special=True)["tokens"]
    assert found == AutoTokenizer.from_pretrained(tmp_path / "base")(TEXT)["input_ids"]


NOTHING: Callable[[Path], object] = lambda folder: None  # noqa: E731
# Why -> family, configuration of the base, of the adapter, what happens to the files, further options, what is said.
REFUSED: dict[str, tuple[str, dict[str, Any], dict[str, Any], Callable[[Path], object], list[str], str]] = {
    "top-k": ("llama", {}, {"topk": 1}, NOTHING, [], "llama: it renormalises the weights of a top-k of 1 to 1, and"),
    "window": (
        "mistral",
        SLIDING,
        {},
        NOTHING,
        [],
        "llama: it has no sliding windows; ernie4_5-moe: it has no sliding",
    ),
    "scaled": (
        "llama",
        {"rope_parameters": ROTARY},
        {"num_experts": [3, 2, 1]},
        NOTHING,
        [],
        # The way to each: equal counts for llama.cpp, or another container.
        "layer 1 has 2 experts, layer 0 3 (neuronmoe allocate --equal-experts makes equal ones); ernie4_5-moe: it has "
        "no rotary positions that are scaled by llama3); take --as neuronmoe, which transformers and vLLM run",
    ),
    "uneven": ("qwen3", {}, {"num_experts": [3, 2, 1]}, NOTHING, [], "qwen3moe: all its mixtures have one count, and"),
    "family": ("olmo2", {}, {}, NOTHING, [], "known are those for llama, mistral, qwen2, qwen3, and the base is olmo2"),
    "rows": (
        "llama",
        {"intermediate_size": 40},
        {},
        NOTHING,
        ["--dtype", "q8_0"],
        "blk.0.ffn_down_exps.weight have 40;",
    ),
    "pre-tokenizer": (
        "llama",
        {},
        {},
        lambda folder: edit_tokenizer(
            folder, lambda each: setattr(each, "pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=True))
        ),
        [],
        "its tokenizer cuts texts by ByteLevel True True, which is none of those of llama.cpp that are written (gpt",
    ),
    "normalizer": (
        "llama",
        {},
        {},
        lambda folder: edit_tokenizer(folder, lambda each: setattr(each, "normalizer", normalizers.Lowercase())),
        [],
        "its tokenizer changes texts by Lowercase, which llama.cpp does not",
    ),
    "words": (
        "llama",
        {},
        {},
        lambda folder: edit_tokenizer(folder, lambda each: setattr(each, "pre_tokenizer", pre_tokenizers.Metaspace())),
        [],
        "its tokenizer is not byte-level BPE with merges, which alone is written as GGUF",
    ),
    "rows of the embedding": (
        "llama",
        {"vocab_size": 61},
        {},
        NOTHING,
        [],
        "has a token 268, and the model has 61 tokens",
    ),
    "text": ("llama", {}, {}, NOTHING, ["--text", "a"], "--text and --device are for comparing logits, and --as gguf"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_is_refused(why: str, make_written: Callable[..., PeftModel], tmp_path: Path) -> None:
    family, base, options, change, given, message = REFUSED[why]
    make_written(family, base, **options)
    change(tmp_path)
    before = sorted(tmp_path.iterdir())
    arguments = ["export", f"{tmp_path}/adapter", "--output", f"{tmp_path}/out", "--as", "gguf", *given]
    result = CliRunner().invoke(cli.app, arguments)
    assert isinstance(result.exception, UserError), result.exception
    assert message in str(result.exception)
    assert sorted(tmp_path.iterdir()) == before


def test_packed_weights_are_for_gguf_alone(make_written: Callable[..., PeftModel], tmp_path: Path) -> None:
    make_written("llama", {})
    with pytest.raises(UserError, match=r"^--dtype q8_0 is one of --as gguf alone; take bfloat16$"):
        ExportRequest(str(tmp_path / "adapter"), tmp_path / "out", dtype="q8_0")
