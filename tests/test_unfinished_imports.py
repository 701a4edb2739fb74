"""Hooks on modules whose own import is what loads this package."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from neuronmoe_plugins.autoload import run_after_import

# It registers a hook on itself before it is complete, as a host does that imports torch.
HALF = """
import sys
from neuronmoe_plugins.autoload import run_after_import
run_after_import(lambda module: module.seen.append(module.complete), __name__)
seen = []
{last}
complete = True
"""


@pytest.mark.parametrize("last", ["", "import os; os.environ['HALF'] == 'fail' and 1 / 0"])
def test_the_hook_runs_when_the_import_ends(last: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the statement that imports it goes on; after an import that failed, at the next one."""
    name = f"half_imported_{len(last)}"
    (tmp_path / f"{name}.py").write_text(HALF.format(last=last))
    monkeypatch.syspath_prepend(tmp_path)
    if last:
        monkeypatch.setenv("HALF", "fail")
        with pytest.raises(ZeroDivisionError):
            importlib.import_module(name)
        (tmp_path / f"{name}.py").write_text("seen = []\ncomplete = True\n# without a hook of its own\n")
        importlib.invalidate_caches()
    module = importlib.import_module(name)
    assert module.seen == [True]
    assert type(module.__spec__) is importlib.machinery.ModuleSpec
    monkeypatch.delitem(sys.modules, name)


def test_a_module_that_is_complete_is_hooked_at_once() -> None:
    seen: list[ModuleType] = []
    run_after_import(seen.append, "json")
    assert seen == [sys.modules["json"]]


@pytest.mark.parametrize(
    ("first", "wrapped"),
    [
        ("from transformers import AutoModelForCausalLM, Trainer", "Trainer.__init__"),
        ("from llamafactory.v1.trainers.sft_trainer import SFTTrainer", "SFTTrainer.compute_loss"),
    ],
)
def test_a_program_may_import_a_host_first(first: str, wrapped: str) -> None:
    """Nothing before has imported torch; the names that the program holds are those of the extended host."""
    if "llamafactory" in first:
        pytest.importorskip("llamafactory")
    program = f"""
{first}
assert hasattr({wrapped}, "__wrapped__")
from neuronmoe_plugins.autoload import outcomes
assert outcomes and not any(outcomes.values()), outcomes
import peft
assert "MOE" in peft.PeftType.__members__ and "MOE" in peft.PEFT_TYPE_TO_TUNER_MAPPING
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=180)
    assert result.returncode == 0, result.stderr
    assert "cannot extend" not in result.stderr
    assert "llamafactory" in first or result.stderr == ""
