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
from neuronmoe_plugins.integrations import commands

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


def test_train(moe_args: dict[str, Any], tmp_path: Path) -> None:
    config = tmp_path / "stage1.yaml"
    config.write_text(json.dumps(moe_args))
    result = run("llamafactory-cli", "train", str(config), "aux_loss_coeff=0.1")
    message = "llamafactory-cli: error: unknown key aux_loss_coeff: did you mean aux_loss_coef?"
    assert (result.returncode, lines_of(result.stderr)) == (2, [message]), result.stderr[-2000:]
    assert not Path(moe_args["output_dir"]).exists()


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
