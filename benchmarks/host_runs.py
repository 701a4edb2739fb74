"""Runs of LLaMA-Factory on a random model and random text, to be timed."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast, TrainerCallback

from benchmarks.models import DEVICE, SHAPE, make_model

WORDS = 1000


def save_model(folder: Path, layers: int | None, dtype: str = "float32", shape: str = SHAPE) -> None:
    """A random model, of so many layers if they are given, and a tokenizer of some words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {word: index for index, word in enumerate(["<s>", "</s>", *(f"w{i}" for i in range(WORDS))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    changes = {} if layers is None else {"num_hidden_layers": layers}
    make_model(shape, dtype, DEVICE, bos_token_id=0, eos_token_id=1, **changes).save_pretrained(folder)


def save_texts(folder: Path, tokens: int) -> None:
    """Two data sets of random words, one tagged as old and one as new."""
    folder.mkdir()
    words = [f"w{i}" for i in range(WORDS)]
    info = {}
    for language in ("old", "new"):
        texts = (" ".join(random.Random(i).choices(words, k=100)) for i in range(tokens // 100))
        lines = (json.dumps({"text": text}) + "\n" for text in texts)
        (folder / f"{language}.jsonl").write_text("".join(lines))
        info[language] = {"file_name": f"{language}.jsonl", "columns": {"prompt": "text"}, "language": language}
    (folder / "dataset_info.json").write_text(json.dumps(info))


def train(folder: Path, options: dict[str, Any], callbacks: Iterable[TrainerCallback]) -> None:
    """Run LLaMA-Factory on the `model` and the `data` in a folder, into its `run` unless `options` say otherwise."""
    from llamafactory.train.tuner import run_exp

    common = {
        "model_name_or_path": str(folder / "model"),
        "stage": "pt",
        "do_train": True,
        "finetuning_type": "moe",
        "generate_lang_mask": True,
        "dataset": "old,new",
        "mix_strategy": "interleave_under",
        "dataset_dir": str(folder / "data"),
        "per_device_train_batch_size": 1,
        "output_dir": str(folder / "run"),
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": DEVICE == "cpu",
        "bf16": DEVICE == "cuda",
    }
    run_exp(common | options, callbacks=list(callbacks))
