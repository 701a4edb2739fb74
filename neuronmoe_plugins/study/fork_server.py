"""Forks programs of Python from a process that has imported what they need: `fork_server.py LISTENING_SOCKET MODULE…`.

Started by `forks.py`; it imports the modules once, says so on its standard input, a socket, and then forks a process
for every program that is asked for. That goes on as a fresh one does that has imported the modules: with arguments,
environment, folder, and standard streams of its own, and it ends as the interpreter does: exception hook, exit
handlers, exit code. The server ends when its standard input is closed, and when a module cannot be imported.

It is a file by itself, run by its path: nothing of this package is imported but what the modules import.
"""

from __future__ import annotations

import atexit
import faulthandler
import gc
import importlib
import json
import os
import random
import runpy
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

Program = Callable[[], Any]
RUNPY = runpy.run_path.__code__.co_filename


def serve(listener: socket.socket) -> Program | None:
    """Returns in each forked process what it shall run, and in the server nothing, at its end."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the keepers
    while True:
        ready = select.select([listener.fileno(), 0], [], [])[0]
        if 0 in ready:
            return None
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            return _keep(connection)
        connection.close()


def _keep(connection: socket.socket) -> Program:
    """Fork the program and tell the client how it ended; it does not outlive the client."""
    _, streams, _, _ = socket.recv_fds(connection, 1, 3)
    with connection.makefile("rb") as lines:
        request = json.loads(lines.readline())
    process = os.fork()
    if process == 0:
        connection.close()
        return _become(streams, **request)
    for stream in streams:
        os.close(stream)
    ended = os.pidfd_open(process)
    if ended not in select.select([connection.fileno(), ended], [], [])[0]:
        os.kill(process, signal.SIGTERM)
        if not select.select([ended], [], [], 10)[0]:
            os.kill(process, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    try:
        connection.sendall(b"%d" % code)
    finally:
        os._exit(0)


def _become(streams: list[int], words: list[str], folder: str, environment: dict[str, str]) -> Program:
    """Make this process the one of `python WORDS…`."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(folder)
    signal.signal(signal.SIGINT, interrupt)
    os.environ.clear()
    os.environ.update({**imported, **environment})
    if _is_spoilt():
        os.execve(sys.executable, [sys.executable, *words], environment)
    _forget_the_servers()
    if words[0] == "-m":
        module = words[1]
        return _started(words[1:], folder, lambda: runpy.run_module(module, run_name="__main__", alter_sys=True))
    if words[0] == "-c":
        code = compile(words[1], "<string>", "exec")
        return _started(["-c", *words[2:]], "", lambda: exec(code, {"__name__": "__main__"}))
    return _started(words, str(Path(words[0]).parent), lambda: runpy.run_path(words[0], run_name="__main__"))


def _is_spoilt() -> bool:
    """Whether something has used an accelerator as it was imported, after which no forked process can."""
    torch: Any = sys.modules.get("torch")
    kinds = [getattr(torch, kind, None) for kind in ("cuda", "xpu", "npu")]
    return any(getattr(kind, "_is_in_bad_fork", bool)() for kind in kinds)


def _forget_the_servers() -> None:
    """What a process gets from its environment or by chance when it starts."""
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(random.SystemRandom().randrange(2**32))
    if torch := sys.modules.get("torch"):
        torch.default_generator.seed()
    datasets: Any = sys.modules.get("datasets.config")
    if datasets and (cache := os.environ.get("HF_DATASETS_CACHE")):
        datasets.HF_DATASETS_CACHE = Path(cache)
    if os.environ.get("PYTHONFAULTHANDLER"):
        faulthandler.enable()


def _started(arguments: list[str], first: str, program: Program) -> Program:
    """The search path is the one of a fresh process, whose `sitecustomize` runs."""
    added = _added()
    sys.argv[:], sys.path[:] = arguments, [first, *added, *search_path]
    for folder in added:
        if (site := Path(folder, "sitecustomize.py")).exists():
            runpy.run_path(str(site))
    return program


def _added() -> list[str]:
    return [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]


def _end(program: Program) -> NoReturn:
    """Run to the end of the process, without the second that it takes to free everything imported."""
    code = _code_of(program)
    if code is None:
        code = _code_of(_print_error) or 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def _print_error() -> None:
    error: Any = sys.last_value
    sys.excepthook(type(error), error, error.__traceback__)


def _code_of(run: Program) -> int | None:
    """What the process ends with, or None after an error."""
    try:
        run()
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        sys.stderr.write(f"{end.code}\n")
        return 1
    except BaseException as error:
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename in (__file__, RUNPY):
            trace = trace.tb_next
        sys.last_value = error.with_traceback(trace)
        return None
    return 0


def _import(name: str) -> None:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:  # another version of a host may not have it, and its program not need it
        if not error.name or not f"{name}.".startswith(f"{error.name}."):
            raise


if __name__ == "__main__":
    interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)  # is for the programs
    os.close(os.pidfd_open(os.getpid()))  # where the kernel has none, the server ends here
    del sys.path[0]  # this folder
    search_path = [folder for folder in sys.path if folder not in _added()]
    given = dict(os.environ)
    for module in sys.argv[2:]:
        _import(module)
    imported = {name: value for name, value in os.environ.items() if name not in given}
    gc.collect()
    gc.freeze()
    os.write(0, b"!")
    if program := serve(socket.socket(fileno=int(sys.argv[1]))):
        _end(program)
