"""`neuronmoe doctor` as its user sees it, and what it makes of versions that are not installed here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from packaging.requirements import Requirement
from typer.testing import CliRunner

from neuronmoe_plugins import doctor
from neuronmoe_plugins.cli import app
from neuronmoe_plugins.installed import Installed
from neuronmoe_plugins.tested_sets import broken_versions

NEURONMOE = str(Path(sys.executable).with_name("neuronmoe"))
SHARED = {"torch": "2.13.0+cpu", "accelerate": "1.11.0", "datasets": "4.0.0", "trl": "0.24.0"}
# What LLaMA-Factory's metadata say of the others.
BOUNDS = {
    "0.9.3": ["transformers<=4.52.4,>=4.45.0", "peft<=0.15.2,>=0.14.0"],
    "0.9.4": ["transformers!=4.52.0,<=4.57.1,>=4.49.0", "peft<=0.17.1,>=0.14.0", "accelerate<=1.11.0,>=1.3.0"],
    "0.9.5": ["transformers!=4.52.0,!=4.57.0,<=5.6.0,>=4.55.0", "peft<=0.18.1,>=0.18.0", "accelerate<=1.11.0,>=1.3.0"],
    "0.9.9": ["transformers>=4.55.0", "peft>=0.18.0"],
}


def having(
    llamafactory: str | None, transformers: str, peft: str, others: Mapping[str, list[str]] | None = None, **more: str
) -> Installed:
    """An environment with these versions; `others` are further distributions and what they ask for."""
    asked = {"llamafactory": BOUNDS[llamafactory]} if llamafactory else {}
    asked |= dict(others or {})
    versions = {**SHARED, "transformers": transformers, "peft": peft, **dict.fromkeys(others or (), "1.0")}
    versions |= {"llamafactory": llamafactory} if llamafactory else {}
    versions |= {name.replace("_", "-"): version for name, version in more.items()}
    return Installed(versions, {name: [Requirement(line) for line in lines] for name, lines in asked.items()})


def run(monkeypatch: pytest.MonkeyPatch, installed: Installed, *options: str, **errors: str) -> Result:
    """The command in an environment whose hosts are all hooked, but for these errors of hooks, by host."""
    outcomes: dict[str, str | None] = dict.fromkeys(name for modules in doctor.HOSTS.values() for name in modules)
    for host, error in errors.items():
        outcomes[doctor.HOSTS[host][-1]] = error
    monkeypatch.setattr(Installed, "here", lambda: installed)
    monkeypatch.setattr(doctor, "_probe", lambda modules: {"loaded": True, "outcomes": outcomes, "errors": {}})
    return CliRunner().invoke(app, ["doctor", *options], env={"COLUMNS": "80"})


def rows(output: str) -> dict[str, list[str]]:
    """First column -> the other columns of every row that starts one."""
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in output.splitlines() if "│" in line]
    return {row[0]: row[1:] for row in cells if row[0]}


def test_every_host_is_found_and_hooked() -> None:
    result = subprocess.run([NEURONMOE, "doctor"], capture_output=True, text=True, timeout=180)
    assert result.returncode == 0, result.stdout
    table = rows(result.stdout)
    assert list(table) == ["torch", "peft", "transformers", "llamafactory", "deepspeed", "lm-eval"]
    assert [row[1:3] for row in table.values()] == [["yes", "yes"]] * 4 + [["yes", "-"]] * 2
    assert result.stdout.endswith("\nNothing to do.\n")


def test_a_switched_off_autoload_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEURONMOE_AUTOLOAD", "0")
    monkeypatch.setattr(doctor, "HOSTS", {"torch": ("torch",)})
    monkeypatch.setattr(doctor, "COMPANIONS", ())
    (torch,) = doctor.examine().hosts
    assert torch.hooked is False and not torch.healthy
    assert "NEURONMOE_AUTOLOAD=0 switches the autoload off" in str(torch.advice)


def test_what_cannot_be_imported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Also the companions of torch, as pip installs them beside a build for CPUs."""
    errors = {
        "torchvision": 'RuntimeError("operator torchvision::nms does not exist")',
        "torchaudio": 'OSError("libcudart.so.13: cannot open shared object file")',
    }
    for name, error in errors.items():
        (tmp_path / name / "lib").mkdir(parents=True)
        (tmp_path / name / "lib" / "_extension.so").touch()
        (tmp_path / name / "__init__.py").write_text(f"raise {error}\n")
        (tmp_path / f"{name}-9.0.dist-info").mkdir()
        (tmp_path / f"{name}-9.0.dist-info" / "METADATA").write_text(f"Name: {name}\nVersion: 9.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    hosts = {"torch": ("torch", f"{doctor.EXPERIMENTAL}nothing"), "peft": ("torch.no_such_module",), "llamafactory": ()}
    monkeypatch.setattr(doctor, "HOSTS", hosts)
    torch, peft, llamafactory, torchvision, torchaudio = doctor.examine().hosts
    assert torch.hooked and torch.healthy, "a module that a version of LLaMA-Factory's v1 lacks is no fault"
    assert peft.hooked is False and not peft.healthy and llamafactory.healthy
    assert peft.reasons == ["torch.no_such_module: ModuleNotFoundError: No module named 'torch.no_such_module'"]
    (reason,) = torchvision.reasons
    assert reason.endswith(": RuntimeError: operator torchvision::nms does not exist") and "beside torch 2" in reason
    assert str(torchvision.advice).startswith("pip uninstall -y torchvision  # text needs none of it")
    assert str(torchaudio.advice).startswith(f"rm {tmp_path}/torchaudio/lib/*.so  # ") and not torchaudio.healthy


@pytest.mark.parametrize(
    ("installed", "says", "todo"),
    [
        (
            having("0.9.5", "5.24.0", "0.21.2"),
            "llamafactory 0.9.5 asks for peft<=0.18.1,>=0.18.0, but peft 0.21.2 is installed",
            "pip install peft==0.18.1 transformers==5.5.0",
        ),
        (
            having("0.9.4", "5.24.0", "0.21.2"),
            "llamafactory 0.9.4 asks for transformers!=4.52.0,<=4.57.1,>=4.49.0, but transformers 5.24.0 is installed",
            "pip install peft==0.17.1 transformers==4.57.1",
        ),
        (
            having("0.9.5", "4.57.0", "0.18.1"),
            "transformers: 4.57.0 does not work: it was withdrawn, and LLaMA-Factory excludes it",
            "pip install transformers==4.57.1",
        ),
        (
            having("0.9.3", "4.52.4", "0.15.2"),
            "peft: 0.15.2 is not supported; supported is >=0.17",
            "pip install llamafactory==0.9.4 peft==0.17.1 transformers==4.57.1",
        ),
        (
            having("0.9.5", "5.5.0", "0.18.1", lm_eval="0.4.9.2"),
            f"lm-eval: 0.4.9.2 does not work: {broken_versions()['lm-eval']['0.4.9.2']}",
            "pip install lm-eval==0.4.11",
        ),
        (
            having("0.9.5", "5.24.0", "0.18.1", {"other": ["transformers>=5.1,<5.4"]}),
            "llamafactory 0.9.5 asks for transformers!=4.52.0,!=4.57.0,<=5.6.0,>=4.55.0, but transformers 5.24.0 is",
            "pip install transformers==5.1.0",
        ),
        (
            having("0.9.5", "5.24.0", "0.18.1", {"other": ["transformers==5.2.0"]}),
            "llamafactory 0.9.5 asks for transformers!=4.52.0,!=4.57.0,<=5.6.0,>=4.55.0, but transformers 5.24.0 is",
            "pip install 'transformers!=4.52.0,!=4.57.0,<=5.6.0,>=4.55.0'",
        ),
        (
            having(None, "5.24.0", "0.18.1", {"llamafactory-kt": ["transformers-kt==5.6"]}, transformers_kt="5.6"),
            "transformers 5.24.0 is installed over transformers-kt 5.6, and llamafactory-kt refuses to start beside "
            "it: pip uninstall -y transformers, then pip install --force-reinstall --no-deps transformers-kt==5.6",
            None,
        ),
    ],
)
def test_versions_that_do_not_go_together(
    monkeypatch: pytest.MonkeyPatch, installed: Installed, says: str, todo: str | None
) -> None:
    result = run(monkeypatch, installed)
    assert result.exit_code == 1, (result.output, result.exception)
    assert f"\n{says}" in result.output
    assert [line for line in result.output.splitlines() if line.startswith("What to do")] == [
        f"What to do: {each}" for each in [todo] if each
    ]


def test_versions_that_do_go_together(monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(monkeypatch, having("0.9.9", "5.99.0", "0.18.1"))
    assert result.exit_code == 0, (result.output, result.exception)
    assert rows(result.output)["transformers"] == ["5.99.0", "untested", "yes"]
    assert "\ntransformers: newer than 5.24.0, the newest that was tested\n" in result.output
    assert "\nlm-eval: not installed; pip install 'lm-eval[hf]" in result.output
    result = run(monkeypatch, having(None, "5.23.0", "0.21.2"))
    how = "pip install llamafactory==0.9.5 accelerate"
    assert f"\nllamafactory: not installed; {how}" not in result.output
    how = "pip install llamafactory==0.9.5 peft==0.18.1 transformers==5.5.0"
    assert f"\nllamafactory: not installed; {how}\n" in result.output and result.exit_code == 0


def test_why_a_hook_failed_and_json(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = having("0.9.5", "5.5.0", "0.18.1")
    result = run(monkeypatch, installed, peft="ImportError: no [train]\nhere")
    module = doctor.HOSTS["peft"][-1]
    assert f"\npeft: {module}: ImportError: no [train] here\n" in result.output and result.exit_code == 1
    result = run(monkeypatch, installed, "--json", peft="ImportError: no [train]\nhere")
    told: dict[str, Any] = json.loads(result.stdout)
    assert result.exit_code == 1 and told.keys() == {"healthy", "hosts", "conflicts", "advice"}
    assert (told["healthy"], told["conflicts"], told["advice"]) == (False, [], None)
    assert told["hosts"][1] == {
        **{"host": "peft", "distribution": "peft", "version": "0.18.1", "supported": True, "hooked": False},
        **{"reasons": [f"{module}: ImportError: no [train] here"], "advice": None, "healthy": False},
    }
    result = run(monkeypatch, installed, llamafactory="TypeError: no trainer")
    assert f"\nllamafactory: {doctor.HOSTS['llamafactory'][-1]}: TypeError: no trainer\n" in result.output
    assert result.exit_code == 0, "v1 is no fault of the others' training"
    told = json.loads(run(monkeypatch, having("0.9.5", "5.24.0", "0.18.1"), "--json").stdout)
    assert told["advice"] == "pip install transformers==5.5.0" and len(told["conflicts"]) == 1


def test_the_distributions_of_this_python() -> None:
    installed = Installed.here()
    assert installed.versions["torch"] == doctor.Installed.here().versions["torch"]
    (bound,) = (each for each in installed.requirements["llamafactory"] if each.name == "transformers")
    assert not bound.specifier.contains("99")
    assert not installed.conflicts()
