"""Data sets that are not there: an error before anything is loaded."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from training_runs import refusal


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (None, r"dataset_info.json does not exist; dataset_dir must be the folder that has it$"),
        ("{", r"dataset_info.json is not JSON \(Expecting .*\); it must map the name of each data set to its entry$"),
        ([], "dataset_info.json is not a JSON object; it must map the name of each data set to its entry$"),
        ({"el_evn": {}, "en": {}}, r"dataset_info.json has no data set 'el_even': did you mean el_evn\?$"),
        ({"el_even": "el.jsonl"}, "el_even must be an object with a file_name; got 'el.jsonl'$"),
        ({"el_even": {"language": "el"}}, "el_even has no file_name$"),
        ({"el_even": {"file_name": "gone.jsonl"}}, "el_even: there is no file .*gone.jsonl$"),
        ({"el_even": {"file_name": "empty"}}, "el_even: there is no file .*empty$"),
        ({"el_even": {"file_name": "texts.doc"}}, "el_even: texts.doc is none of arrow, csv, json"),
        ({"el_even": {"hf_hub_url": "owner/texts"}}, "dataset_info.json has no data set 'later'$"),
    ],
    ids=["no file", "no JSON", "a list", "name", "no object", "no file name", "gone", "empty", "kind", "evaluation"],
)
def test_data_that_is_not_there(moe_args: dict[str, Any], tmp_path: Path, entries: Any, message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts.doc").touch()
    if entries is not None:
        text = entries if isinstance(entries, str) else json.dumps(entries)
        (tmp_path / "dataset_info.json").write_text(text)
    args = moe_args | {"dataset_dir": str(tmp_path), "eval_dataset": "later", "eval_strategy": "epoch"}
    assert re.search(message, refusal(args))


def test_data_that_is_tokenised_already_is_not_looked_for(
    moe_args: dict[str, Any], data_dir: Path, tmp_path: Path
) -> None:
    from datasets import Dataset, DatasetDict
    from llamafactory.hparams import get_train_args

    DatasetDict({"train": Dataset.from_dict({"input_ids": [[1]]})}).save_to_disk(tmp_path / "tokens")
    args = moe_args | {"dataset": "gone", "tokenized_path": str(tmp_path / "tokens")}
    assert get_train_args(args)[1].dataset == ["gone"]
    assert "has no data set 'gone'" in refusal(args | {"tokenized_path": str(tmp_path / "other")})
