"""Serves commands by forking: `server.py LISTENING_SOCKET MODULE…` imports the modules once, and then forks a process
for every command that `client.py` asks for, which goes on as a process of Python does that has imported them.

A command has its own arguments, environment, folder, and standard streams, and its process ends as the interpreter's:
exception hook, exit handlers, exit code. The server ends when its standard input is closed.
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
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

Program = Callable[[], Any]


def serve(listener: socket.socket) -> Program | None:
    """Returns in each forked process what it shall run, and in the server nothing, at its end."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the keepers
    while True:
        ready = select.select([listener, 0], [], [])[0]
        if 0 in ready:
            return None
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            return _keep(connection)
        connection.close()


def _keep(connection: socket.socket) -> Program:
    """Fork the command and tell the client how it ended; it does not outlive the client."""
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
    if ended not in select.select([connection, ended], [], [])[0]:
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
    os.environ.clear()
    os.environ.update(environment)
    _forget_the_servers()
    if words[0] == "-m":
        module = words[1]
        return _started(words[1:], folder, lambda: runpy.run_module(module, run_name="__main__", alter_sys=True))
    if words[0] == "-c":
        code = compile(words[1], "<string>", "exec")
        return _started(["-c", *words[2:]], "", lambda: exec(code, {"__name__": "__main__"}))
    return _started(words, str(Path(words[0]).parent), lambda: runpy.run_path(words[0], run_name="__main__"))


def _forget_the_servers() -> None:
    """What a process gets from its environment or by chance when it starts."""
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(random.SystemRandom().randrange(2**32))
    if (datasets := sys.modules.get("datasets.config")) and (cache := os.environ.get("HF_DATASETS_CACHE")):
        datasets.HF_DATASETS_CACHE = Path(cache)
    if os.environ.get("PYTHONFAULTHANDLER"):
        faulthandler.enable()


def _started(arguments: list[str], first: str, program: Program) -> Program:
    """The search path is the one of a fresh process, whose `sitecustomize` runs."""
    added = [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
    sys.argv[:], sys.path[:] = arguments, [first, *added, *sys.path[1:]]
    for folder in added:
        if (site := Path(folder, "sitecustomize.py")).exists():
            runpy.run_path(str(site))
    return program


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
    error = sys.last_value
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
        sys.last_value = error
        return None
    return 0


if __name__ == "__main__":
    for module in sys.argv[2:]:
        with suppress(ModuleNotFoundError):  # another version of a host may not have it, and its command not need it
            importlib.import_module(module)
    gc.collect()
    gc.freeze()
    if program := serve(socket.socket(fileno=int(sys.argv[1]))):
        _end(program)
