"""Experts of low rank that are nearest to those of an adapter: `neuronmoe compress`."""

from neuronmoe_plugins.compression.record import CompressedLayer, Compression, CompressRequest

__all__ = ["CompressRequest", "CompressedLayer", "Compression"]
