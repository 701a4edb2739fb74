"""Keys that nobody knows, values that cannot be, and files that cannot be read; other methods are left to the host."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from training_runs import refusal

from neuronmoe_plugins.errors import UserError

BAD_INPUT: dict[str, tuple[dict[str, Any], str]] = {
    "key of moe": ({"aux_loss_coeff": 0.1}, r"unknown key aux_loss_coeff: did you mean aux_loss_coef\?$"),
    "key of the host": ({"learning_rat": 0.1}, r"unknown key learning_rat: did you mean learning_rate\?$"),
    "case and hyphens": ({"Group-Nums": 2}, r"unknown key Group-Nums: did you mean group_nums\?$"),
    "two keys": ({"toppk": 2, "datasett": "x"}, r"unknown key toppk: did .* topk\?; unknown key datasett: did .*"),
    "like nothing": ({"xyzzy": 1}, "unknown key xyzzy: no argument is like it, remove it$"),
    "no word": ({1: 2}, "unknown key 1: no argument is like it"),
    "unused when published": ({"token_route": True}, "token_route: the published code never used it, remove it$"),
    "step between layers": ({"moe_every_k_layers": 2}, "must be 1; got 2: name the layers in layers_to_moe"),
    "training of the base": ({"save_all_params": True}, "save_all_params must be false: the base model stays frozen"),
    "method": ({"finetuning_type": "mo"}, r"finetuning_type must be one of .*, moe; got 'mo': did you mean moe\?$"),
    "case of the method": ({"finetuning_type": "MoE"}, r"got 'MoE': did you mean moe\?$"),
    "key of the method": (
        {"finetuning_type": None, "finetuning_typ": "moe"},
        r"unknown key finetuning_typ: did you mean finetuning_type\?$",
    ),
    "key of moe with another method": (
        {"finetuning_type": "lora", "ada_moe_num_experts_list": None, "ada_moe_num_expert_list": "3,1,1,2"},
        r"unknown key ada_moe_num_expert_list: did you mean ada_moe_num_experts_list\?$",
    ),
    "word for a count": ({"topk": "two"}, "topk must be an integer; got 'two'$"),
    "half a count": ({"topk": 1.5}, "topk must be an integer; got 1.5$"),
    "switch for a count": ({"max_steps": True}, "max_steps must be an integer; got True$"),
    "word for a number": ({"learning_rate": "fast", "topk": "x"}, "learning_rate must be a number; got 'fast'; topk m"),
    "word for a switch": ({"bf16": "yes"}, "bf16 must be true or false; got 'yes'$"),
    "choice": ({"mix_strategy": "concatt"}, r"mix_strategy must be one of concat, .*; got 'concatt': .* concat\?$"),
    "stage": ({"stage": "ptt"}, r"stage must be one of pt, sft, .*; got 'ptt': did you mean pt\?$"),
    "the host's own": ({"eval_strategy": "stps"}, "^stps is not a valid IntervalStrategy, please select one of"),
    "a list of adapters": ({"adapter_name_or_path": ["a"]}, "adapter_name_or_path must be one folder or hub name"),
    "missing model": ({"model_name_or_path": None}, "model_name_or_path is missing: name the folder"),
    "missing data": ({"dataset": None}, "dataset is missing: name the data sets"),
    "missing counts": (
        {"ada_moe_num_experts_list": None},
        "number of experts is missing: set ada_moe_num_experts_list .* or moe_num_experts",
    ),
    "missing task": ({"do_train": None}, r"nothing to do: set do_train: true"),
}


@pytest.mark.parametrize(("overrides", "message"), BAD_INPUT.values(), ids=BAD_INPUT.keys())
def test_bad_keys_and_values(moe_args: dict[str, Any], overrides: dict[str, Any], message: str) -> None:
    given = {key: value for key, value in (moe_args | overrides).items() if value is not None}
    assert re.search(message, refusal(given))


def test_the_launcher_reads_the_hosts_refusals_too(moe_args: dict[str, Any]) -> None:
    import llamafactory.hparams.parser as host

    from neuronmoe_plugins.integrations.llamafactory.checks import check_train_command

    with pytest.raises(UserError, match=r"^Cannot specify `val_size`"):
        check_train_command(moe_args | {"val_size": 0.1, "eval_dataset": "x"}, host._TRAIN_ARGS)


def words(args: dict[str, Any]) -> list[str]:
    """The arguments as a command line."""
    return [f"--{key}={value}" for key, value in args.items()]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--aux_loss_coeff", "0.1"], r"unknown key aux_loss_coeff: did you mean aux_loss_coef\?$"),
        (["--topk", "two"], "argument --topk: invalid int value: 'two'$"),
        (["--aux_loss_coef", "-1"], "aux_loss_coef must not be negative; got -1.0$"),
        (["--layers_to_moe", "0", "1"], "unknown arguments 1$"),
        (["--lora_rank", "8"], "no effect with finetuning_type: moe: lora_rank; remove it$"),
        (["--lpr_loss", "0.1"], "lpr_loss_coef needs to know which tokens"),
    ],
)
def test_bad_command_line(
    moe_args: dict[str, Any], more: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert re.search(message, refusal(words(moe_args) + more))
    assert "usage" not in "".join(capfd.readouterr())


def test_good_command_line(moe_args: dict[str, Any]) -> None:
    from llamafactory.hparams import get_train_args

    published = ["--generate_lang_mask", "--train_only_router", "False", "--moe_every_k_layers", "1", "--topk", "2"]
    model_args, _, _, finetuning_args, _ = get_train_args([*words(moe_args), *published, "--no_use_kv_cache"])
    assert (finetuning_args.expert_list, finetuning_args.topk) == ([3, 1, 1, 2], 2)
    assert model_args.use_kv_cache is False


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("finetuning_type: moe\ntopk: 2\ntopk: 3\n", "stage1.yaml cannot be read: line 3: .*duplicate key topk"),
        ("finetuning_type: moe\ntopk: [2\n", "stage1.yaml cannot be read: line 3: did not find expected"),
        (
            "finetuning_type: moe\nlist:\n\t- 2\n",
            "line 3: .*; YAML is indented by blanks, not by tabs$",
        ),
        ("- finetuning_type: moe\n", "stage1.yaml cannot be read: it must map keys to values$"),
        (None, "stage1.yaml: there is no such file$"),
    ],
    ids=["twice", "syntax", "tab", "list", "missing"],
)
def test_unreadable_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "stage1.yaml").write_text(text)
    monkeypatch.setattr("sys.argv", ["train", str(tmp_path / "stage1.yaml")])
    assert re.search(message, refusal(None))


def test_unreadable_words_after_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stage1.yaml").write_text("finetuning_type: moe")
    monkeypatch.setattr("sys.argv", ["train", str(tmp_path / "stage1.yaml"), "topk=[2"])
    assert "stage1.yaml cannot be read: after it, did not find expected" in refusal(None)


def test_other_methods_get_the_hosts_errors(
    moe_args: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llamafactory.hparams import get_train_args, read_args
    from yaml import YAMLError

    lora = moe_args | {"finetuning_type": "lora"}
    del lora["ada_moe_num_experts_list"]
    for more, kind, message in (
        ({"lora_rnk": 8, "topK": 2}, ValueError, r"^Some keys .* HfArgumentParser: \['lora_rnk', 'topK'\]$"),
        ({"finetuning_type": "lorra"}, AssertionError, "^Invalid fine-tuning method.$"),
        ({"dataset": None}, ValueError, "^Please specify dataset for training.$"),
        ({"adapter_name_or_path": "nowhere", "finetuning_type": "full"}, ValueError, "^Adapter is only valid for"),
    ):
        with pytest.raises(kind, match=message) as error:
            get_train_args(lora | more)
        assert not isinstance(error.value, UserError)
    (tmp_path / "lora.yaml").write_text("finetuning_type: lora\ntopk: [")
    monkeypatch.setattr("sys.argv", ["train", str(tmp_path / "lora.yaml")])
    with pytest.raises(YAMLError):
        read_args()


def test_keys_of_training_in_inference(tmp_path: Path) -> None:
    from llamafactory.hparams import get_infer_args

    with pytest.raises(UserError, match=r"^unknown key output_dir: it is for training alone, remove it$"):
        get_infer_args({"model_name_or_path": "base", "finetuning_type": "moe", "output_dir": str(tmp_path)})


def test_extra_arguments_can_be_allowed(moe_args: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from llamafactory.hparams import get_train_args

    monkeypatch.setenv("ALLOW_EXTRA_ARGS", "1")
    assert get_train_args(moe_args | {"xyzzy": 1})[3].finetuning_type == "moe"
