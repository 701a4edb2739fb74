"""How commands end on bad input: one line on standard error and exit code 2, and nothing is written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.integrations import commands, run_files

TOOLS = Path(sys.executable).parent
# Runs as the host's launcher does, as far as the end of a command is concerned.
LAUNCHER = """
import sys
from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.integrations.commands import end_in_one_line
end_in_one_line()
raise {error}
"""


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = f"{TOOLS}{os.pathsep}{os.environ['PATH']}"
    env = os.environ | {"PATH": path} | environment
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)


def lines_of(stderr: str) -> list[str]:
    """Without what other libraries warn of."""
    return [line for line in stderr.splitlines() if line.startswith(("llamafactory-cli", "Traceback", "ValueError"))]


def test_a_mistake_ends_before_anything_heavy_is_imported(moe_args: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "transformers.py").write_text("raise SystemExit('too late')")
    config = tmp_path / "stage1.yaml"
    config.write_text(json.dumps(moe_args))
    result = run("llamafactory-cli", "train", str(config), "model_name_or_path=/nowhere", PYTHONPATH=str(tmp_path))
    message = "model_name_or_path: /nowhere does not exist, and is no name on the Hugging Face Hub (OWNER/NAME)"
    assert (result.returncode, result.stderr) == (2, f"llamafactory-cli: error: {message}\n")
    assert not Path(moe_args["output_dir"]).exists()


@pytest.mark.parametrize(
    ("words", "content", "message"),
    [
        (["train", "gone.yaml"], None, "gone.yaml: there is no such file"),
        (["export", "gone.yml"], None, "gone.yml: there is no such file"),
        (["train", "x.yaml"], "finetuning_type: moe\n\ttopk: 2", "x.yaml cannot be read: line 2: .* not by tabs"),
        (["train", "x.yaml"], "finetuning_type: moe\ntopk: [", "x.yaml cannot be read: line 2: "),
        (["train", "x.yaml"], "finetuning_type: moe\ndataset_dir: /gone", "/gone/dataset_info.json does not exist"),
        (["chat", "x.yaml", "adapter_name_or_path=a/b/c"], "finetuning_type: moe", "adapter_name_or_path: a/b/c does"),
        (["sft", "x.yaml"], "model: /gone\npeft_config: {name: moe}", "model: /gone does not exist"),
        (["rm", "x.yaml"], "model: a/b\npeft_config: {name: moe}", "rm of v1 would train moe without the mixture's"),
    ],
)
def test_what_is_said_at_once(
    words: list[str], content: str | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path("x.yaml").write_text(content)
    with pytest.raises(UserError, match=message):
        run_files.check_file(words)


@pytest.mark.parametrize(
    ("words", "content"),
    [
        (["train", "x.yaml"], "finetuning_type: lora\nmodel_name_or_path: /gone\n\ttab"),
        (["train", "x.yaml", "finetuning_type=lora"], "finetuning_type: moe\nmodel_name_or_path: /gone"),
        (["train", "x.yaml"], "finetuning_type: moe\nmodel_name_or_path: owner/name\ndataset_dir: ONLINE"),
        (["train", "x.yaml"], "finetuning_type: moe\ndataset_dir: /gone\ntokenized_path: tokens"),
        (["train", "x.yaml"], "finetuning_type: moe\nmodel_name_or_path: ${oc.env:MODEL}"),
        (["chat", "x.yaml"], "finetuning_type: moe\ndataset_dir: /gone"),
        (["version"], ""),
        ([], ""),
    ],
)
def test_what_may_be_right_or_is_the_hosts_to_say(
    words: list[str], content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.yaml").write_text(content)
    run_files.check_file(words)


def test_chat_without_an_adapter(tiny_model_dir: Path) -> None:
    keys = {"model_name_or_path": tiny_model_dir, "finetuning_type": "moe", "template": "empty"}
    result = run("llamafactory-cli", "chat", *(f"--{key}={value}" for key, value in keys.items()))
    message = "finetuning_type: moe without training needs an adapter: set adapter_name_or_path"
    expected = (2, [f"llamafactory-cli: error: {message}"])
    assert (result.returncode, lines_of(result.stderr)) == expected, result.stderr[-2000:]


def save_launcher(folder: Path, error: str) -> str:
    (folder / "llamafactory").mkdir()
    (folder / "llamafactory" / "launcher.py").write_text(LAUNCHER.format(error=error))
    return str(folder / "llamafactory" / "launcher.py")


@pytest.mark.parametrize(
    ("error", "code", "lines"),
    [
        ("UserError('first\\n  second')", 2, ["llamafactory-cli: error: first second"]),
        ("ValueError('first')", 1, ["Traceback (most recent call last):", "ValueError: first"]),
        ("SystemExit(5)", 5, []),
    ],
)
def test_other_errors_stay_as_they_are(tmp_path: Path, error: str, code: int, lines: list[str]) -> None:
    result = run(sys.executable, save_launcher(tmp_path, error))
    assert (result.returncode, lines_of(result.stderr)) == (code, lines)


def test_other_programs_get_the_traceback(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(LAUNCHER.format(error="UserError('first')"))
    result = run(sys.executable, str(tmp_path / "program.py"))
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == "neuronmoe_plugins.errors.UserError: first"


@pytest.mark.parametrize(
    ("more", "refused"), [({}, None), ({"topk": 4}, "topk is 4"), ({"finetuning_type": "lora", "topk": None}, None)]
)
def test_arguments_are_checked_before_workers_start(
    moe_args: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any], refused: str | None
) -> None:
    from llamafactory import launcher

    from neuronmoe_plugins.integrations.llamafactory import parser

    given = {key: value for key, value in (moe_args | more).items() if value is not None}
    if given["finetuning_type"] == "lora":
        # Nothing that costs the imports of a check.
        monkeypatch.setattr(parser, "check_train_command", None)
        del given["ada_moe_num_experts_list"]
    (tmp_path / "stage1.yaml").write_text(json.dumps(given))
    started: list[dict[str, Any]] = []

    def start(_command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        started.append(options)
        assert Path(options["env"][commands.REPORTS]).is_dir()
        return subprocess.CompletedProcess([], 0)

    monkeypatch.setattr(subprocess, "run", start)
    monkeypatch.setattr("sys.argv", ["llamafactory-cli", "train", str(tmp_path / "stage1.yaml")])
    monkeypatch.setenv("FORCE_TORCHRUN", "1")
    with pytest.raises(SystemExit if refused is None else UserError, match=refused):
        launcher.launch()
    assert len(started) == (refused is None)


def start_workers(launcher: str) -> subprocess.CompletedProcess[str]:
    """Start two workers as the host's launcher does when it has found no fault with the arguments."""
    code = (
        "import subprocess, sys\n"
        "from neuronmoe_plugins.integrations.commands import _WorkersSubprocess\n"
        f"command = ['torchrun', '--nproc-per-node=2', '--standalone', {launcher!r}]\n"
        "_WorkersSubprocess(subprocess).run(command, check=True)\n"
    )
    return run(sys.executable, "-c", code)


def test_workers_say_it_once(tmp_path: Path) -> None:
    result = start_workers(save_launcher(tmp_path, "UserError('first')"))
    assert (result.returncode, lines_of(result.stderr)) == (2, ["llamafactory-cli: error: first"])


def test_workers_with_other_errors_are_the_hosts(tmp_path: Path) -> None:
    result = start_workers(save_launcher(tmp_path, "ValueError('first')"))
    assert result.returncode == 1
    assert {"ValueError: first", "Traceback (most recent call last):"} <= set(lines_of(result.stderr))


def test_every_worker_is_heard(tmp_path: Path) -> None:
    launcher = save_launcher(tmp_path, "UserError('rank ' + sys.argv[1])")
    said = [lines_of(run(sys.executable, launcher, rank, **{commands.REPORTS: str(tmp_path)}).stderr) for rank in "001"]
    assert said == [["llamafactory-cli: error: rank 0"], [], ["llamafactory-cli: error: rank 1"]]
