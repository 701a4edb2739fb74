"""Training data: from raw corpora to what LLaMA-Factory reads, and a manifest that says what it is."""

from neuronmoe_plugins.data.manifest import Manifest, ManifestDataset, read_manifest

__all__ = ["Manifest", "ManifestDataset", "read_manifest"]
