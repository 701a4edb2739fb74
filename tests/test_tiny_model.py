"""The shared fixture itself: what other tests rely on."""

from pathlib import Path


def test_tiny_model_reads_any_script(tiny_model_dir: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    ids = tokenizer("Γειά σου, dünya").input_ids
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == "Γειά σου, dünya"
    assert max(ids) < model.config.vocab_size
    assert model.config.num_hidden_layers == 4
