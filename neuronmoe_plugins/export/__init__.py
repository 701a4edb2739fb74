"""Checkpoints of trained mixtures in architectures that transformers and engines know."""
