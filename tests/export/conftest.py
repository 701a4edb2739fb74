"""Adapters with random experts and routers, as if trained, saved beside the tiny models that they are on."""

from export.making import make_adapter

__all__ = ["make_adapter"]
