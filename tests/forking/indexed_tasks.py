"""Imported by the server of lm-eval's commands, each of which would index lm-eval's own tasks for ten seconds."""

from functools import cache

from lm_eval.tasks import TaskManager, _index

_index.load_yaml = cache(_index.load_yaml)
TaskManager()
