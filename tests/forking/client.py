"""Stands in for `python` or one of its commands: a server forks the process, which this one stands for to its end.

Called by the files that `commands.py` writes: `client.py SERVER SCRIPT WORDS…`, where SCRIPT is empty for `python`.
"""

import json
import os
import signal
import socket
import sys
from pathlib import Path

server, script, *words = sys.argv[1:]
words = [script, *words] if script else [word for word in words if word != "-u"]
connection = socket.socket(socket.AF_UNIX)
connection.connect(server)
socket.send_fds(connection, [b"!"], [0, 1, 2])
request = {"words": words, "folder": str(Path.cwd()), "environment": dict(os.environ)}
connection.sendall(json.dumps(request).encode() + b"\n")
signal.signal(signal.SIGTERM, lambda *_: connection.shutdown(socket.SHUT_WR))  # and wait for the end
code = int(connection.recv(16) or 70)
if code < 0:
    if -code not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
os._exit(code)
