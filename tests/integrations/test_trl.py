"""TRL's SFTTrainer trains a mixture, losses included, with nothing of this package in the program."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch

trl = pytest.importorskip("trl", reason="TRL is not installed")

from datasets import Dataset  # noqa: E402


def train(folder: Path, model: Path, **options: object) -> tuple[list[float], dict[str, float], torch.nn.Module]:
    """Two steps: the logged losses, the tuner's metrics and the model."""
    config = {"peft_type": "MOE", "task_type": "CAUSAL_LM", "num_experts": [3, 1, 1, 2], **options}
    texts = Dataset.from_dict({"text": ["a text that is a little longer than the other", "a short text"] * 4})
    arguments = trl.SFTConfig(
        output_dir=str(folder),
        max_steps=2,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        seed=0,
    )
    torch.manual_seed(0)
    trainer = trl.SFTTrainer(
        model=str(model), args=arguments, train_dataset=texts, peft_config=peft.get_peft_config(config)
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return losses, trainer.model.base_model.pop_metrics(), trainer.model


def test_sft_trainer(tmp_path: Path, tiny_model_dir: Path) -> None:
    plain, _, _ = train(tmp_path, tiny_model_dir)
    losses, metrics, model = train(tmp_path, tiny_model_dir, aux_loss_coef=0.5)
    assert losses[0] == pytest.approx(plain[0] + 0.5 * metrics["aux_loss"], abs=0.05)
    assert losses[0] - plain[0] > 0.5
    assert all(".moe_" in name for name, p in model.named_parameters() if p.requires_grad)
    experts = model.base_model.model.model.layers[0].mlp.moe_up_proj["default"]
    assert not torch.equal(experts[0], experts[1])
    model.save_pretrained(tmp_path / "adapter")
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
