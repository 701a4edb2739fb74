"""Whether a model that is no folder is on the hub: a hub on this machine says so, or nobody answers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.models import ADAPTER, require_model


class Hub(BaseHTTPRequestHandler):
    """Has `own/model`, and nobody may read `gated/model`."""

    def do_HEAD(self) -> None:
        code, error = {"own": (200, None), "gated": (403, "GatedRepo")}.get(
            self.path.split("/")[1], (404, "RepoNotFound")
        )
        self.send_response(code)
        headers = (
            {"X-Repo-Commit": "c" * 40, "ETag": "e", "Content-Length": "1"}
            if error is None
            else {"X-Error-Code": error}
        )
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    server = HTTPServer(("127.0.0.1", 0), Hub)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    ask(monkeypatch, server.server_port)
    thread = threading.Thread(target=server.serve_forever, args=[0.01])
    thread.start()
    yield
    server.shutdown()
    thread.join()
    server.server_close()


def ask(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    template = "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"http://127.0.0.1:{port}{template}")


def test_the_hub_is_asked_for_what_is_no_folder(hub: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_model("--model", "own/model")
    require_model("--model", "gated/model")  # what loads it says why it may not
    missing = r"^--adapter no/adapter does not exist: there is no such folder, nor is it in the hub's cache, "
    for is_needed in (True, False):
        with pytest.raises(UserError, match=missing + r"nor on the hub \(a private one needs `hf auth login`\)$"):
            require_model("--adapter", "no/adapter", ADAPTER, is_needed=is_needed)
    monkeypatch.setenv("USE_MODELSCOPE_HUB", "1")
    require_model("--model", "no/model", is_needed=False)  # a training asks that hub
    ask(monkeypatch, 9)  # where nobody answers
    with pytest.raises(UserError, match=missing + r"and the hub cannot be asked \(.*refused.*\)$"):
        require_model("--adapter", "no/adapter", ADAPTER)
    require_model("--model", "no/model", is_needed=False)
    (tmp_path / "models--no--model").mkdir()
    require_model("--model", "no/model")  # in the cache
