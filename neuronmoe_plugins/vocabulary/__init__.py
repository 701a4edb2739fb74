"""A larger vocabulary for a base model: merges learnt on new text, rows for them, and the whole model."""
