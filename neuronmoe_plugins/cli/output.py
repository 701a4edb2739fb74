"""What a command prints beside its results: notes and warnings, which `--quiet` leaves out with the progress."""

from __future__ import annotations

import os
from collections.abc import Iterable

import typer

_quiet = False


def set_quiet(quiet: bool) -> None:
    """Print results and errors alone from now on, or everything."""
    global _quiet
    _quiet = quiet
    if quiet:
        # The hosts' own: tqdm's bars, and what transformers and huggingface_hub log.
        os.environ |= {"TQDM_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_VERBOSITY": "error"}


def is_quiet() -> bool:
    """Whether nothing but results and errors is printed."""
    return _quiet


def note(text: str) -> None:
    """Say on standard output what was done."""
    if not _quiet:
        typer.echo(text)


def warn(warnings: Iterable[object]) -> None:
    """Say on standard error, a line each, what may be wrong with the results."""
    for warning in () if _quiet else warnings:
        typer.echo(f"Warning: {warning}", err=True)
