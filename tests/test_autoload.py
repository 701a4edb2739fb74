"""The autoload in fresh processes, as other programs meet it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

GOLDEN = str(Path(__file__).parent / "data" / "moe_a")
KNOWS_MOE = "import sys, peft; assert 'MOE' in peft.PeftType.__members__ and 'MOE' in peft.PEFT_TYPE_TO_TUNER_MAPPING"
KNOWS_NOTHING = "import sys, peft; assert 'MOE' not in peft.PeftType.__members__; assert not HOOKED"


def run(program: str, **environment: str) -> str:
    """Run Python code in a fresh process and return its standard error; fails with it when the code fails."""
    result = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert result.returncode == 0, result.stderr
    return result.stderr


def test_import_torch_imports_nothing_heavy() -> None:
    run("import torch, sys; assert 'neuronmoe_plugins' in sys.modules; assert 'peft' not in sys.modules")


def test_peft_first_and_the_enumeration_member_behaves_like_the_others() -> None:
    program = f"""
import peft.tuners.lora
{KNOWS_MOE}
import copy, json
from peft import PeftType
moe = PeftType.MOE
assert moe is PeftType("MOE") is PeftType["MOE"] is PeftType(PeftType.MOE)
assert isinstance(moe, PeftType) and moe == "MOE" and moe.name == moe.value == "MOE"
assert list(PeftType)[-1] is moe and "MOE" in list(PeftType) and moe in PeftType
assert json.dumps(moe) == '"MOE"' and copy.deepcopy(moe) is moe and hash(moe) == hash("MOE")
assert repr(moe) == "<PeftType.MOE: 'MOE'>" and PeftType("LORA") is PeftType.LORA
from neuronmoe_plugins.integrations.peft import add_peft_type
add_peft_type("MOE")
assert PeftType.MOE is moe and len([t for t in PeftType if t == "MOE"]) == 1
"""
    assert run(program) == ""


def test_by_hand_and_by_itself_registers_once() -> None:
    program = f"""
import neuronmoe_plugins.tuner, wrapt.importer
neuronmoe_plugins.register_hooks()
{KNOWS_MOE}
import llamafactory.data.parser as hooked
from neuronmoe_plugins.autoload import outcomes
assert "llamafactory.data.parser" in outcomes and not any(outcomes.values()), outcomes
assert len(wrapt.importer._post_import_hooks["llamafactory.train.sft.trainer"]) == 1
"""
    run(program)


def test_switched_off_until_imported_by_hand() -> None:
    program = f"""
import torch, sys
HOOKED = "neuronmoe_plugins" in sys.modules
{KNOWS_NOTHING}
import neuronmoe_plugins
{KNOWS_MOE}
from transformers import AutoModelForCausalLM
from transformers import CONFIG_MAPPING
assert "neuronmoe" in CONFIG_MAPPING and "neuronmoe_plugins.architecture.model" not in sys.modules
golden = {GOLDEN!r}
model = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(golden + "/base"), golden + "/adapter")
assert len([name for name in peft.get_peft_model_state_dict(model) if name.endswith("moe_router.weight")]) == 3
"""
    assert "in the published NeuronMoE format" in run(program, NEURONMOE_AUTOLOAD="0")


def test_a_broken_installation_leaves_torch_alone() -> None:
    stderr = run("import sys; sys.modules['neuronmoe_plugins'] = None; import torch; torch.ones(1)")
    assert "could not be loaded" in stderr and "ModuleNotFoundError" in stderr


def test_a_failing_hook_leaves_its_host_alone() -> None:
    program = """
import sys
sys.modules["neuronmoe_plugins.integrations.peft"] = None  # importing it now raises
import peft
from neuronmoe_plugins.autoload import outcomes
assert isinstance(outcomes["peft.peft_model"], ImportError)
peft.LoraConfig()
try:
    peft.PeftConfig.from_pretrained(ADAPTER)
except ValueError as error:
    line = f"moe cannot run with peft {peft.__version__}: neuronmoe-plugins cannot extend peft.peft_model ("
    assert str(error).startswith(line) and str(error).endswith("run `neuronmoe doctor`"), error
else:
    raise AssertionError("the adapter is loaded")
"""
    assert run(program.replace("ADAPTER", repr(f"{GOLDEN}/adapter"))) == ""


def test_torchrun_workers_know_moe(tmp_path: Path) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text(
        f"import torch\n{KNOWS_MOE}\nimport os, pathlib\npathlib.Path('rank' + os.environ['RANK']).touch()\n"
    )
    torchrun = Path(sys.executable).with_name("torchrun")
    result = subprocess.run(
        [str(torchrun), "--nproc-per-node=1", "--standalone", str(worker)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert result.returncode == 0, result.stderr
    assert {path.name for path in tmp_path.glob("rank*")} == {"rank0"}
