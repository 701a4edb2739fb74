"""What a training process will hold in memory: an estimate from the model's parameters, made before the first step.

Weights, gradients and optimizer states are added up exactly, from real sizes and dtypes; what several processes share
is divided evenly. The activations are a rough estimate. The allocator's rounding, the device's context and
communication buffers beside DDP's are not included.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from neuronmoe_plugins.tuner.saved_modules import is_added

FLOAT32_BYTES = 4
# At the peak of the loss's backward: its gradient, the log-probabilities and the gradient of the logits, in float32.
LOSS_BYTES_PER_LOGIT = 12


@dataclass(frozen=True)
class OptimizerStates:
    """What an optimizer keeps for each parameter.

    Attributes:
        tensors: How many tensors of the parameter's size.
        bytes_per_element: Of each; those of the parameter itself when None.
    """

    tensors: int
    bytes_per_element: float | None = None


# What the optimizers of `optim` keep. bitsandbytes' 8-bit ones have a float32 scale for every 256 elements.
EIGHT_BITS = 1 + 4 / 256
OPTIMIZERS = {
    "adamw_torch": OptimizerStates(2),
    "adamw_torch_fused": OptimizerStates(2),
    "paged_adamw_32bit": OptimizerStates(2, 4),
    "adamw_bnb_8bit": OptimizerStates(2, EIGHT_BITS),
    "adamw_8bit": OptimizerStates(2, EIGHT_BITS),
    "paged_adamw_8bit": OptimizerStates(2, EIGHT_BITS),
    "lion_32bit": OptimizerStates(1, 4),
    "paged_lion_32bit": OptimizerStates(1, 4),
    "lion_8bit": OptimizerStates(1, EIGHT_BITS),
    "paged_lion_8bit": OptimizerStates(1, EIGHT_BITS),
    "adagrad": OptimizerStates(1),
    "rmsprop": OptimizerStates(1),
    "sgd": OptimizerStates(0),
}

# Arguments of the host that put another optimizer in the place of `optim`.
OTHER_OPTIMIZERS = ("use_galore", "use_apollo", "use_badam", "use_adam_mini", "use_muon")


@dataclass(frozen=True)
class Setup:
    """How a model will be trained, as far as its memory depends on it.

    Attributes:
        optimizer: None if it is not known what it keeps.
        num_processes: Processes that share whatever is shared.
        shares_weights: Whether each holds only its part of them (ZeRO-3, FSDP).
        shares_gradients: The same for gradients (ZeRO-2 and above, FSDP).
        shares_optimizer: The same for optimizer states and float32 copies (ZeRO-1 and above, FSDP).
        has_buckets: Whether gradients are copied into buckets of their own for the exchange (DDP).
        compute_dtype: The dtype that DeepSpeed casts all parameters to, to train float32 copies of them; None where the
            parameters themselves are trained.
        offloads_optimizer: Whether optimizer states, float32 copies and gradients wait in the CPU's memory.
        keeps_gradients: Whether gradients stay through the next forward pass, as between accumulated micro-batches.
        num_tokens: Tokens of a micro-batch, padding included; None to leave the activations out.
        num_logits: Logits that each token gets, the size of the vocabulary.
    """

    optimizer: OptimizerStates | None
    num_processes: int = 1
    shares_weights: bool = False
    shares_gradients: bool = False
    shares_optimizer: bool = False
    has_buckets: bool = False
    compute_dtype: torch.dtype | None = None
    offloads_optimizer: bool = False
    keeps_gradients: bool = False
    num_tokens: int | None = None
    num_logits: int = 0


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes in one process.

    Attributes:
        base_weights: Parameters and buffers of the base model.
        mixture_weights: Experts, routers and classifiers, and copies of modules that are saved with them.
        master_weights: DeepSpeed's float32 copies of what is trained.
        gradients: Of all trainable parameters.
        buckets: DDP's copies of them.
        optimizer: The optimizer's states; None if not known.
        activations: With gradient checkpointing, at the loss: each layer's input and what the loss needs. None if not
            estimated.
        offloaded: Which of the above are in the CPU's memory instead of the device's.
        keeps_gradients: Whether gradients and activations are held at the same time.
    """

    base_weights: int
    mixture_weights: int
    master_weights: int
    gradients: int
    buckets: int
    optimizer: int | None
    activations: int | None
    offloaded: tuple[str, ...] = ()
    keeps_gradients: bool = False

    @property
    def without_activations(self) -> int:
        """All of the device's but the activations, and but an optimizer that is not known."""
        names = ("base_weights", "mixture_weights", "master_weights", "gradients", "buckets", "optimizer")
        return sum(getattr(self, name) or 0 for name in names if name not in self.offloaded)

    @property
    def peak(self) -> int | None:
        """The most that is held at once; None if the activations are not estimated.

        The loss comes before the gradients: what it needs is released while they are made, unless they were kept.
        """
        if self.activations is None:
            return None
        given_up = 0 if self.keeps_gradients or "gradients" in self.offloaded else min(self.gradients, self.activations)
        return self.without_activations + self.activations - given_up


def estimate_memory(model: nn.Module, setup: Setup) -> MemoryEstimate:
    """Estimate what training will hold in one process.

    Args:
        model: A model with mixtures, on any device, whole or partitioned by ZeRO-3. Which of its parameters ask for a
            gradient, and their dtypes, must be those of the training.
        setup: How it will be trained.
    """
    parameters = dict(model.named_parameters())
    mixture = [parameter for name, parameter in parameters.items() if is_added(name)]
    base = [parameter for name, parameter in parameters.items() if not is_added(name)]
    trained = [parameter for parameter in parameters.values() if parameter.requires_grad]
    weights, gradients, states = (
        setup.num_processes if shares else 1
        for shares in (setup.shares_weights, setup.shares_gradients, setup.shares_optimizer)
    )
    copies = num_elements(trained) * FLOAT32_BYTES if setup.compute_dtype else 0
    # DeepSpeed's step holds this process's part of the gradients, flattened, and that in float32, if they are not yet.
    flattened = 2 * copies - _total(trained, setup) if copies else 0
    return MemoryEstimate(
        base_weights=_total(base, setup) // weights + sum(buffer.nbytes for buffer in model.buffers()),
        mixture_weights=_total(mixture, setup) // weights,
        master_weights=copies // states,
        gradients=_total(trained, setup) // gradients + flattened // states,
        buckets=_total(trained, setup) if setup.has_buckets else 0,
        optimizer=None if setup.optimizer is None else _states(trained, setup.optimizer, setup) // states,
        activations=_activations(model, setup),
        offloaded=("master_weights", "gradients", "optimizer") if setup.offloads_optimizer else (),
        keeps_gradients=setup.keeps_gradients,
    )


def num_elements(parameters: Iterable[nn.Parameter]) -> int:
    """Number of elements, also of parameters that ZeRO-3 has partitioned."""
    return sum(int(getattr(parameter, "ds_numel", parameter.numel())) for parameter in parameters)


def dtype_of(parameter: nn.Parameter, setup: Setup) -> torch.dtype:
    """The dtype in which a parameter will be; quantised ones stay as they are."""
    return setup.compute_dtype if setup.compute_dtype and parameter.is_floating_point() else parameter.dtype


def _total(parameters: Iterable[nn.Parameter], setup: Setup) -> int:
    """Bytes of whole parameters."""
    return sum(num_elements([parameter]) * dtype_of(parameter, setup).itemsize for parameter in parameters)


def _states(trained: Iterable[nn.Parameter], optimizer: OptimizerStates, setup: Setup) -> int:
    """Bytes of the states of the parameters, or of the float32 copies in their place."""
    total = 0.0
    for parameter in trained:
        own = FLOAT32_BYTES if setup.compute_dtype else parameter.element_size()
        size = own if optimizer.bytes_per_element is None else optimizer.bytes_per_element
        total += num_elements([parameter]) * optimizer.tensors * size
    return round(total)


def _activations(model: nn.Module, setup: Setup) -> int | None:
    """Under gradient checkpointing: the input of each layer, and the loss over all logits."""
    if setup.num_tokens is None:
        return None
    config = model.config.get_text_config()  # type: ignore[operator, union-attr]
    embedding: Any = model.get_input_embeddings()  # type: ignore[operator]
    # Where rows are trained by themselves, PEFT's wrapper would compute the weight, of which ZeRO-3 holds a part.
    embeddings = getattr(embedding, "token_adapter", embedding).weight
    inputs = config.num_hidden_layers * config.hidden_size * dtype_of(embeddings, setup).itemsize
    return setup.num_tokens * (inputs + LOSS_BYTES_PER_LOGIT * setup.num_logits)


def setup_of(trainer: Any, reporter: Any) -> Setup:
    """The setup of a trainer that is about to train.

    Args:
        trainer: The host's trainer.
        reporter: The host's `ReporterCallback`, which knows the model and data arguments that the trainer is not given;
            None if there is none.
    """
    args, plugins = trainer.args, trainer.accelerator.state
    config = plugins.deepspeed_plugin.hf_ds_config if trainer.is_deepspeed_enabled else None
    setup = Setup(
        _optimizer(args, trainer.finetuning_args, config),
        num_processes=args.world_size,
        keeps_gradients=args.gradient_accumulation_steps > 1,
        num_tokens=_num_tokens(trainer, reporter),
        num_logits=trainer.model.config.get_text_config().vocab_size,
    )
    if config is not None:
        stage = config.get_value("zero_optimization.stage", 0)
        return replace(
            setup,
            shares_weights=stage >= 3,
            shares_gradients=stage >= 2,
            shares_optimizer=stage >= 1,
            compute_dtype=torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else torch.float32,
            offloads_optimizer=config.get_value("zero_optimization.offload_optimizer.device", "none") != "none",
        )
    if trainer.is_fsdp_enabled:
        # True, or the name of a strategy of FSDP's first version.
        gathered = plugins.fsdp_plugin.sharding_strategy or plugins.fsdp_plugin.reshard_after_forward
        strategy = getattr(gathered, "name", str(gathered))
        shares, shares_weights = strategy != "NO_SHARD", strategy in ("True", "FULL_SHARD")
        return replace(setup, shares_weights=shares_weights, shares_gradients=shares, shares_optimizer=shares)
    return replace(setup, has_buckets=args.world_size > 1)


def _optimizer(args: Any, finetuning_args: Any, config: Any) -> OptimizerStates | None:
    """What the run's optimizer keeps, if it is known; the DeepSpeed configuration may name another one."""
    replaced = any(getattr(finetuning_args, name) for name in OTHER_OPTIMIZERS)
    in_file = config is not None and config.get_value("optimizer.type") is not None
    if replaced or in_file or args.optim_args:
        return None
    return OPTIMIZERS.get(str(getattr(args.optim, "value", args.optim)))


def _num_tokens(trainer: Any, reporter: Any) -> int | None:
    """Tokens of the largest micro-batch; None where their activations follow no simple formula."""
    if reporter is None or not trainer.model.is_gradient_checkpointing or reporter.model_args.enable_liger_kernel:
        return None
    return int(trainer.args.per_device_train_batch_size * reporter.data_args.cutoff_len)
