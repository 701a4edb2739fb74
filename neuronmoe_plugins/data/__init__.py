"""Training data: from raw corpora to the data sets that LLaMA-Factory reads, and the manifest that says what they are."""

from neuronmoe_plugins.data.manifest import Manifest, ManifestDataset, read_manifest

__all__ = ["Manifest", "ManifestDataset", "read_manifest"]
