"""Runs of LLaMA-Factory in processes that are forked when everything is imported: `forked_runs.py RUNS.json`.

RUNS.json has a list of runs: their `arguments`, number of `processes` and `log`, to which each process's rank is added,
and for one that shall be killed `kill_when` (see `killed/killing.py`) and the `rank` of the process that is. When one
process has died, so do the others, as under torchrun.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

import no_compiler.sitecustomize  # noqa: F401
from killed import killing

killing.register()

# The hosts import these only when they train: once for all runs is enough.
import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: E402, F401
import transformers.models.llama.modeling_llama  # noqa: E402, F401
from llamafactory.train.tuner import run_exp  # noqa: E402


def run(arguments: dict[str, Any], log: str, processes: int = 1, kill_when: str = "", rank: int = 0) -> None:
    """Run to the end, or until a process dies."""
    environment = _distributed(processes) if processes > 1 else {}
    running = {
        _fork(environment | {killing.WHEN: kill_when if index == rank else ""}, index, arguments, log)
        for index in range(processes)
    }
    while running:
        process, status = os.wait()
        running.remove(process)
        if status:
            for other in running:
                os.kill(other, signal.SIGKILL)


def _distributed(processes: int) -> dict[str, str]:
    """What torchrun tells its workers, but for their ranks."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    sizes = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), **sizes}


def _fork(environment: dict[str, str], rank: int, arguments: dict[str, Any], log: str) -> int:
    process = os.fork()
    if process:
        return process
    os.environ |= environment | ({"RANK": str(rank), "LOCAL_RANK": str(rank)} if "WORLD_SIZE" in environment else {})
    output = os.open(f"{log}.{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    status = 1
    try:
        run_exp(arguments)
        status = 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    os._exit(status)


if __name__ == "__main__":
    for one in json.loads(Path(sys.argv[1]).read_text()):
        run(**one)
