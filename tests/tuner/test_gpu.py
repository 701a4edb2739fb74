"""The tuner on a CUDA device gives what it gives on the CPU, and does not wait for the device."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from peft import get_peft_model

from benchmarks import decode, models
from neuronmoe_plugins.tuner import MoeConfig, MoeLayer
from neuronmoe_plugins.tuner import experts as implementations
from tuner.tiny import randomised, tiny_model


@pytest.fixture
def full_precision() -> Iterator[None]:
    """All bits of float32 in products: TF32, which an environment variable allows in NVIDIA's containers, has fewer."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.gpu
def test_losses_and_gradients_equal_those_of_the_cpu(batch: dict[str, torch.Tensor], full_precision: None) -> None:
    results = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(7)
        config = MoeConfig(task_type="CAUSAL_LM", num_experts=3, aux_loss_coef=0.3, lpr_loss_coef=0.2)
        model = get_peft_model(tiny_model(), config).to(device).train()
        loss = model(**{name: tensor.to(device) for name, tensor in batch.items()}).loss
        loss.backward()
        results.append([loss.detach().cpu(), *(p.grad.cpu() for p in model.parameters() if p.requires_grad)])
    for on_cpu, on_gpu in zip(*results, strict=True):
        torch.testing.assert_close(on_gpu, on_cpu, atol=1e-4, rtol=1e-4)


def layer_on_gpu(monkeypatch: pytest.MonkeyPatch, **options: int) -> MoeLayer:
    """A mixture in bfloat16 that runs by grouped_mm; nothing may stand in for it."""
    monkeypatch.setattr(implementations, "run_sorted", None)
    config = MoeConfig(task_type="CAUSAL_LM", **{"num_experts": 6, "layers_to_transform": [1]} | options)
    model = randomised(get_peft_model(tiny_model(hidden_size=64, intermediate_size=128), config))
    layer = model.base_model.model.model.layers[1].mlp.to("cuda", torch.bfloat16)
    assert layer.experts_implementation == {"default": "auto"}
    return layer


def states_on_gpu(tokens: int) -> torch.Tensor:
    generator = torch.Generator("cuda").manual_seed(0)
    return torch.randn(1, tokens, 64, device="cuda", generator=generator).bfloat16().requires_grad_(True)


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1, 2, 300])
@pytest.mark.parametrize("options", [{}, {"topk": 1}, {"topk": 4}, {"num_experts": 64}])
def test_grouped_mm_computes_what_the_loop_does(
    monkeypatch: pytest.MonkeyPatch, tokens: int, options: dict[str, int]
) -> None:
    layer, results = layer_on_gpu(monkeypatch, **options), []
    for name in ("auto", "loop"):
        layer.experts_implementation["default"] = name
        states = states_on_gpu(tokens)
        layer.zero_grad()
        output = layer(states)
        output.sum().backward()
        assert states.grad is not None
        results.append([output, states.grad, *(p.grad for p in layer.parameters() if p.requires_grad)])
    for found, expected in zip(*results, strict=True):
        assert (found.float() - expected.float()).norm() <= 0.02 * expected.float().norm()


@pytest.mark.gpu
def test_many_tokens_are_sorted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside of a graph; whatever runs, the output is the loop's."""
    layer = layer_on_gpu(monkeypatch)
    monkeypatch.undo()
    monkeypatch.setattr(implementations, "run_grouped", None)
    states = states_on_gpu(implementations.MANY_TOKENS)
    outputs = []
    for name in ("auto", "loop"):
        layer.experts_implementation["default"] = name
        outputs.append(layer(states).float())
    assert (outputs[0] - outputs[1]).norm() <= 0.02 * outputs[1].norm()


@pytest.mark.gpu
def test_forward_and_backward_do_not_wait_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, states = layer_on_gpu(monkeypatch), states_on_gpu(100)
    layer(states).sum().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        layer(states).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_decoding_a_token_can_be_captured_in_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, states = layer_on_gpu(monkeypatch), states_on_gpu(1).detach()
    with torch.no_grad():
        layer(states)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = layer(states)
        for scale in (1.0, -2.0, 0.5):
            states.mul_(scale)
            graph.replay()
            torch.testing.assert_close(output, layer(states))


@pytest.mark.parametrize(
    ("device", "kinds"),
    # On a GPU, where a mixture in float32 cannot be captured, two graphs of the base model.
    [("cpu", ("dense", "mixed")), pytest.param("cuda", ("dense", "dense"), marks=pytest.mark.gpu)],
)
def test_the_benchmark_decodes_in_every_round_what_generate_does(
    monkeypatch: pytest.MonkeyPatch, full_precision: None, device: str, kinds: tuple[str, str]
) -> None:
    """In turns, each over a static cache of its own, which the other must not come into."""
    monkeypatch.setattr(decode, "DEVICE", device)
    monkeypatch.setattr(models, "DEVICE", device)
    config = MoeConfig(task_type="CAUSAL_LM", num_experts=3, inference_mode=True)
    model = randomised(get_peft_model(models.make_model("tiny", "float32", device), config)).to(device).eval()
    prompt = torch.arange(3, 3 + decode.PROMPT_TOKENS, device=device).unsqueeze(0)
    options = {"attention_mask": torch.ones_like(prompt), "do_sample": False, "max_new_tokens": 6, "min_new_tokens": 6}
    expected = {"mixed": model.generate(input_ids=prompt, **options)}
    with model.disable_adapter():
        expected["dense"] = model.generate(input_ids=prompt, **options)
    assert not expected["mixed"].equal(expected["dense"])
    decoders = [(kind, decode.Decoder(model, 6, kind == "dense")) for kind in kinds]
    for _ in range(3):
        for kind, decoder in decoders:
            assert decoder.decode(6)[1] == expected[kind][0, decode.PROMPT_TOKENS :].tolist()
