"""Imported by the server of lm-eval's commands, each of which would index lm-eval's own tasks for ten seconds."""

from contextlib import suppress
from functools import cache

with suppress(ImportError):  # of lm-eval before 0.4.12, whose commands take that long
    from lm_eval.tasks import TaskManager, _index

    _index.load_yaml = cache(_index.load_yaml)
    TaskManager()
