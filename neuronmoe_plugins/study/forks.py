"""Programs as forks of a process that has imported their libraries, where they can be that, and else as they are."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

from neuronmoe_plugins.steps import Program, Start, start_process

# What LLaMA-Factory and lm-eval import, but not they themselves: some of their modules, and what this package adds to
# them, look at the arguments, the environment or the GPU when they are imported.
LIBRARIES = (
    "transformers.trainer",
    "peft",
    "datasets",
    "trl",
    "matplotlib.pyplot",
    "sklearn.metrics",
    "nltk",
    "omegaconf",
    "torchaudio",
    "av",
)


@dataclass(frozen=True)
class ForkServer:
    """A process that forks programs.

    Attributes:
        address: Of its socket.
        python: Runs it.
    """

    address: str
    python: Path

    def start(self, words: Sequence[str], cwd: Path | None, variables: Mapping[str, str], output: IO[str]) -> Program:
        """Start a program as `start_process` does: as a fork, if it is a script of that Python."""
        connection = socket.socket(socket.AF_UNIX)
        request = {"words": list(words), "folder": str(cwd or Path.cwd()), "environment": dict(variables)}
        try:
            if not self._runs(Path(words[0])):
                raise FileNotFoundError(words[0])
            connection.connect(self.address)
            with Path(os.devnull).open() as nothing:
                socket.send_fds(connection, [b"!"], [nothing.fileno(), output.fileno(), output.fileno()])
            connection.sendall(json.dumps(request).encode() + b"\n")
        except OSError:  # also where the server was killed
            connection.close()
            return start_process(words, cwd, variables, output)
        return _Fork(connection)

    def _runs(self, program: Path) -> bool:
        with program.open("rb") as file:
            first = os.fsdecode(file.readline())
        interpreter = Path(first.removeprefix("#!").strip())
        return first.startswith("#!") and interpreter.is_file() and interpreter.parent == self.python.parent


class _Fork(AbstractContextManager[Any]):
    """A program that was forked, with the methods of a process that `Program` has."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def wait(self) -> int:
        with suppress(ConnectionError):
            if code := self._connection.recv(16):
                return int(code)
        return -signal.SIGKILL  # of the server, or of what it has for this program

    def terminate(self) -> None:
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_WR)

    def __exit__(self, *_: object) -> None:
        self._connection.close()


@contextmanager
def fork_server(
    modules: Sequence[str],
    environment: Mapping[str, str],
    python: Path | None = None,
    log: int | IO[bytes] = subprocess.DEVNULL,
) -> Iterator[ForkServer]:
    """A server that has imported modules, until the end of the block; programs that still run then go on.

    Args:
        modules: Those that are not installed are left out.
        environment: All of its variables, as the modules may look at them.
        python: Runs it; by default this one.
        log: Receives what the modules print.

    Raises:
        OSError: where programs cannot be forked: not on Linux, or a module cannot be imported.
    """
    if not hasattr(os, "pidfd_open"):
        raise OSError("programs are forked on Linux alone")
    python = python or Path(sys.executable)
    ours, theirs = socket.socketpair()
    with TemporaryDirectory(prefix="neuronmoe-") as folder, ours:  # which nobody else may enter
        address = str(Path(folder, "server"))
        with theirs, socket.socket(socket.AF_UNIX) as listener:
            listener.bind(address)
            listener.listen(64)
            process = subprocess.Popen(
                [str(python), str(Path(__file__).with_name("fork_server.py")), str(listener.fileno()), *modules],
                pass_fds=[listener.fileno()],
                stdin=theirs.fileno(),
                stdout=log,
                stderr=log,
                env={**environment, "PYTORCH_NVML_BASED_CUDA_CHECK": "1"},  # which leaves CUDA to the programs
            )
        try:
            if not ours.recv(1):
                raise ChildProcessError(f"these cannot be imported: {', '.join(modules)}")
            yield ForkServer(address, python)
        finally:
            process.terminate()
            process.wait()


def start_forked(block: ExitStack, environment: Mapping[str, str]) -> Start:
    """What starts the hosts' commands in a block: by a server with their libraries, or else as processes of their own.

    Args:
        block: At its end there is no server any more.
        environment: Variables of all of them, set on top of this process's.
    """
    try:
        return block.enter_context(fork_server(LIBRARIES, {**os.environ, **environment})).start
    except OSError:
        return start_process
