"""Training documents from raw corpora: which of them are kept."""
