"""Reads the JSON files of users and other programs, and tells JSON values apart."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from neuronmoe_plugins.errors import UserError, one_line


def digest(value: object) -> str:
    """SHA-256 of a JSON value, in hexadecimal digits; the order of an object's keys does not matter."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def read_json_object(
    path: Path, remedy: str, *, missing: str | None = None, wrong: str = "is not a JSON object"
) -> dict[str, Any]:
    """Read a UTF-8 file that must hold one JSON object.

    Args:
        path: The file.
        remedy: What to do, or what the file should be; it ends the messages on the file's content.
        missing: The message where there is no such file; unless given, that it does not exist, and the remedy.
        wrong: What is said of JSON that is not an object.

    Raises:
        UserError: in one line, if the file is missing, cannot be read, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(missing or f"{path} does not exist; {remedy}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({one_line(error)}); {remedy}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} {wrong}; {remedy}")
    return content
