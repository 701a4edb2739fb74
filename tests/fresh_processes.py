"""How many fresh processes of Python each file of tests may start, so that they do not grow unseen.

One that imports a host costs 2 to 10 seconds: what is not about a process runs in the tests' own, and what only needs
one of its own runs in one that is forked (`forking/commands.py`).
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

from forking.commands import TOOLS

MOST = {
    "tests/allocation/test_allocate_command.py": 1,
    "tests/comparison/test_bad_input.py": 1,
    "tests/data_preparation/test_data_command.py": 2,
    "tests/data_preparation/test_language_filter.py": 1,
    "tests/data_preparation/test_near_duplicates.py": 1,
    "tests/data_preparation/test_real_texts.py": 3,  # with --demo
    "tests/data_preparation/test_stopped_runs.py": 11,
    "tests/test_commands.py": 3,
    "tests/integrations/llamafactory/test_arguments.py": 1,
    "tests/integrations/llamafactory/test_exit_codes.py": 11,
    "tests/integrations/llamafactory/test_host_options.py": 1,
    "tests/integrations/llamafactory/test_killed_runs.py": 1,
    "tests/integrations/llamafactory/test_launchers.py": 2,
    "tests/integrations/llamafactory/test_liger.py": 2,  # on a GPU
    "tests/integrations/llamafactory/test_plain_lora.py": 1,
    "tests/integrations/llamafactory/test_train.py": 1,
    "tests/integrations/llamafactory/test_v1.py": 2,
    "tests/lm_eval_tasks/test_adapters.py": 1,
    "tests/lm_eval_tasks/test_probes_fetch.py": 3,  # two of them with --demo
    "tests/neurons/test_analyze_command.py": 1,
    "tests/neurons/test_analyze_data.py": 1,
    "tests/serving/test_server.py": 2,  # of vLLM, with --serving
    "tests/specialisation/test_specialise_command.py": 1,
    "tests/test_autoload.py": 7,
    "tests/test_bad_paths.py": 1,
    "tests/test_cli.py": 2,
    "tests/test_doctor.py": 3,
    "tests/test_face.py": 1,
    "tests/test_gpu_run.py": 10,  # of nothing but the standard library, and of pytest
    "tests/test_plugins.py": 2,
    "tests/test_tested_sets.py": 11,  # of uv
    "tests/test_unfinished_imports.py": 2,
    "tests/test_wheel.py": 2,
    "tests/tuner/test_docs.py": 1,
    "tests/tuner/test_gradients.py": 8,  # torch's compiler asks what the processor can do, as often as it has kinds
}
started: Counter[str] = Counter()


def limit() -> None:
    """Let `subprocess` refuse to start more processes of Python, or of its commands, for a file than it may start."""
    start = subprocess.Popen.__init__

    def start_counted(self: Any, args: Any, *rest: Any, **options: Any) -> None:
        file = os.environ.get("PYTEST_CURRENT_TEST", "").partition("::")[0]
        if file and _is_fresh(args, options.get("env") or os.environ):  # outside a test, xdist starts its workers
            _count(file)
        start(self, args, *rest, **options)

    subprocess.Popen.__init__ = start_counted  # type: ignore[method-assign]


def _is_fresh(args: Any, environment: Any) -> bool:
    words = [os.fspath(word) for word in ([args] if isinstance(args, str | os.PathLike) else args)]
    found = shutil.which(words[0], path=environment.get("PATH"))
    is_server = len(words) > 1 and Path(words[1]).parts[-1] == "fork_server.py"
    return found is not None and Path(found).parent == TOOLS and not is_server


def _count(file: str) -> None:
    started[file] += 1
    most = MOST.get(file, 0)
    if started[file] > most:
        raise AssertionError(
            f"{file} starts more than {most} fresh processes: see whether this one can be forked or needs none "
            "(tests/fresh_processes.py)"
        )
