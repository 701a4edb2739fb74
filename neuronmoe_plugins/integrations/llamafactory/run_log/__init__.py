"""What a run of LLaMA-Factory says about its mixture: tables at its start, values in every log, pictures at its end."""
