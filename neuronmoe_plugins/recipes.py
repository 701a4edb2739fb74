"""What the YAMLs of a recipe say: both stages in LLaMA-Factory, with the paper's hyper-parameters."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import yaml

from neuronmoe_plugins.machines import GPU, Machine

# Table 7's.
MAX_STEPS, BATCH_SIZE, BLOCK, RATE = 15000, 32, 1024, 1e-4
# Up to so many epochs, repeated text teaches almost as much as new text (Muennighoff et al. 2023, arXiv 2305.16264).
MAX_EPOCHS = 4.0

# A key of a YAML, its value, and the comment above it.
Entry = tuple[str, Any, str | None]
Sections = dict[str, list[Entry]]


@dataclass(frozen=True)
class Extension:
    """A trained adapter that stage 1 extends by more experts.

    Attributes:
        adapter: Folder of the adapter.
        num_experts: Its experts per decoder layer, the base MLP included.
    """

    adapter: str
    num_experts: list[int]


@dataclass(frozen=True)
class Recipe:
    """The two training stages of NeuronMoE (arXiv 2603.05046, section 3.3 and Table 7).

    Attributes:
        model: Folder or hub name of the base model.
        num_experts: Experts per decoder layer, the base MLP included.
        target_datasets: Data sets of the languages to learn.
        replay_datasets: Data sets of the languages to keep.
        dataset_dir: Folder of dataset_info.json.
        output_dir: Folder below which the stages write `stage1` and `stage2`.
        original_languages: The codes that count as old where data sets are tagged with codes.
        deepspeed: DeepSpeed configuration file, if any.
        allocation_source: Where `num_experts` comes from, for a comment; nothing if None.
        extends: The adapter to extend, for a further language; a new adapter if None.
        machine: What the training runs on.
        target_tokens: Tokens of the target data sets; None if nobody counted them.
        expert_rank: Rank of the new experts; None for copies of the MLPs.
        expert_targets: What experts of a rank change: mlp (also None), attention or both.
        has_new_tokens: Whether the base model's vocabulary was extended; an adapter that is extended has its own rows.
    """

    model: str
    num_experts: list[int]
    target_datasets: list[str]
    replay_datasets: list[str]
    dataset_dir: str
    output_dir: str
    original_languages: list[str]
    deepspeed: str | None = None
    allocation_source: str | None = None
    extends: Extension | None = None
    machine: Machine = GPU
    target_tokens: int | None = None
    expert_rank: int | None = None
    expert_targets: str | None = None
    has_new_tokens: bool = False

    @property
    def epochs_of_max_steps(self) -> float | None:
        """How often the paper's steps would go over the target data sets, on one process; None if nobody knows."""
        return None if self.target_tokens is None else MAX_STEPS * BATCH_SIZE * BLOCK / max(self.target_tokens, 1)

    @property
    def length_note(self) -> str:
        """How long stage 1 is, in tokens, steps and epochs."""
        epochs, batch = self.epochs_of_max_steps, f"{BATCH_SIZE} x {BLOCK:,} tokens"
        paper = f"the paper's {MAX_STEPS:,} steps of {batch}"
        if epochs is None:
            return f"Stage 1 has {paper} per process, whatever is in the data sets: their tokens are not counted."
        if epochs <= MAX_EPOCHS:
            return f"Stage 1 has {paper}; on one process they are {epochs:.1f} epochs of {self.target_tokens:,} tokens."
        steps = math.ceil(MAX_STEPS * MAX_EPOCHS / epochs)
        return (
            f"Stage 1 has {MAX_EPOCHS:.0f} epochs of {self.target_tokens:,} tokens, about {steps:,} steps of {batch} "
            f"on one process; {paper} would be {epochs:,.0f} epochs."
        )

    def stage1(self) -> str:
        """YAML of the first stage: new experts learn the new languages."""
        return _render(self._header(), self.stage1_sections())

    def stage1_sections(self) -> Sections:
        """What it says, by sections."""
        adapter: list[Entry] = []
        old_experts: list[Entry] = []
        if self.extends is not None:
            adapter = [("adapter_name_or_path", self.extends.adapter, "The adapter that gets more experts.")]
            comment = "Experts of each layer of the adapter to extend."
            old_experts = [("old_moe_num_experts_list", self.extends.num_experts, comment)]
        comment = "Train the rows of the tokens that the base model's vocabulary was extended by, too."
        tokens: list[Entry] = []
        if self.has_new_tokens and self.extends is None:
            tokens = [("train_new_tokens", True, comment)]
        return {
            "Model": [("model_name_or_path", self.model, None), *adapter],
            "Method": [
                *_method(),
                *old_experts,
                (
                    "ada_moe_num_experts_list",
                    self.num_experts,
                    "Experts of each layer, the original MLP included: 1 leaves the layer as it is.",
                ),
                *self._low_rank(),
                *tokens,
                (
                    "topk",
                    2,
                    "Experts that each token uses; with 2 or more the untrained mixture is the base model.",
                ),
                (
                    "aux_loss_coef",
                    0.01,
                    "Weight of the load-balancing loss, which spreads tokens over the experts.",
                ),
            ],
            "Data": self._data(self.target_datasets, cutoff_len=BLOCK),
            "Output": self._output("stage1"),
            "Training": [
                self._duration(),
                *self._training(learning_rate=RATE),
            ],
            **self._distribution(),
        }

    def _low_rank(self) -> list[Entry]:
        if self.expert_rank is None:
            return []
        what = "New experts are low-rank deltas, W + 4 B A, instead of copies of the MLPs."
        targets: list[Entry] = []
        if self.expert_targets not in (None, "mlp"):
            where = "What they change: mlp, attention, or both, with a router each."
            targets = [("moe_targets", self.expert_targets, where)]
        routers = "Stays where the experts' learning_rate is raised: faster routers lean towards the original MLP."
        return [
            ("moe_expert_rank", self.expert_rank, what),
            *targets,
            ("router_learning_rate", RATE, routers),
        ]

    def stage2(self) -> str:
        """YAML of the second stage: the routers relearn the old languages."""
        what = "Stage 2: the routers learn to send the old languages to the original MLPs; the experts are frozen."
        return _render([what, *self._machine_lines()], self.stage2_sections())

    def stage2_sections(self) -> Sections:
        """What it says, by sections."""
        # Without this key the older router rows of an extended adapter would stay frozen.
        comment = "The experts of all languages: their router rows learn again."
        routers_of_all = [("old_moe_num_experts_list", self.num_experts, comment)] if self.extends is not None else []
        languages: list[Entry] = [
            ("generate_lang_mask", True, 'Tell old-language tokens from new ones by "language" in dataset_info.json.')
        ]
        if self.original_languages:
            languages.append(
                ("original_languages", ",".join(self.original_languages), "Language codes that count as old.")
            )
        return {
            "Model": [
                ("model_name_or_path", self.model, None),
                ("adapter_name_or_path", f"{self.output_dir}/stage1", "Stage 1's experts and routers."),
            ],
            "Method": [
                *_method(),
                *routers_of_all,
                ("topk", 2, "Experts that each token uses, as in stage 1."),
                ("train_only_router", True, "Train nothing but the routers."),
                (
                    "lpr_loss_coef",
                    0.1,
                    "Weight of the language-prior routing loss, which draws old-language tokens to expert 0, the "
                    "original MLP.",
                ),
                *languages,
            ],
            "Data": [
                *self._data([*self.replay_datasets, *self.target_datasets], cutoff_len=512),
                ("max_samples", 100000, "At most so many documents of each data set: a little replay is enough."),
            ],
            "Output": self._output("stage2"),
            "Training": [("num_train_epochs", 1.0, None), *self._training(learning_rate=5e-5)],
            **self._distribution(),
        }

    def _duration(self) -> Entry:
        if (self.epochs_of_max_steps or 0) > MAX_EPOCHS:
            return "num_train_epochs", MAX_EPOCHS, self.length_note
        return "max_steps", MAX_STEPS, "The paper's; on a small corpus set num_train_epochs instead."

    def _header(self) -> list[str]:
        """What stage 1 is, how many experts it has, and where their numbers come from."""
        old = self.extends.num_experts if self.extends else [1] * len(self.num_experts)
        frozen = "the base model and the older experts are" if self.extends else "the base model is"
        added = sum(self.num_experts) - sum(old)
        source = [] if self.allocation_source is None else [f"Allocation: {self.allocation_source}."]
        return [
            f"Stage 1: new experts learn the new language, {frozen} frozen.",
            f"{sum(self.num_experts)} experts in {len(self.num_experts)} layers, {added} of them new.",
            *source,
            *self._machine_lines(),
        ]

    def _machine_lines(self) -> list[str]:
        return [] if self.machine.note is None else [self.machine.note]

    def _data(self, datasets: list[str], cutoff_len: int) -> list[Entry]:
        return [
            ("dataset", ",".join(datasets), None),
            ("dataset_dir", self.dataset_dir, None),
            ("cutoff_len", cutoff_len, "Documents are joined and cut into blocks of so many tokens."),
        ]

    def _output(self, stage: str) -> list[Entry]:
        return [
            ("output_dir", f"{self.output_dir}/{stage}", None),
            ("logging_steps", 10, "Each log has the losses and, per layer, the share of tokens on expert 0."),
            ("save_steps", 1000, None),
            ("save_total_limit", 2, None),
            ("report_to", "none", None),
        ]

    def _training(self, learning_rate: float) -> list[Entry]:
        """What both stages share (Table 7), and what the machine allows."""
        return [
            ("per_device_train_batch_size", BATCH_SIZE, None),
            ("gradient_accumulation_steps", 1, None),
            ("learning_rate", learning_rate, None),
            ("optim", "adamw_torch", None),
            ("adam_beta1", 0.9, None),
            ("adam_beta2", 0.999, None),
            ("adam_epsilon", 1e-8, None),
            ("weight_decay", 0.0, None),
            ("lr_scheduler_type", "cosine", None),
            ("warmup_steps", 0, None),
            ("max_grad_norm", 1.0, None),
            ("bf16", self.machine.bf16, None),
            *(
                [("use_cpu", True, "Without it, bf16 asks for a GPU." if self.machine.bf16 else None)]
                if self.machine.use_cpu
                else []
            ),
            ("seed", 42, None),
        ]

    def _distribution(self) -> Sections:
        if self.deepspeed is None:
            return {}
        return {"Distribution": [("deepspeed", self.deepspeed, "Start with FORCE_TORCHRUN=1.")]}


def _method() -> list[Entry]:
    return [
        ("stage", "pt", None),
        ("do_train", True, None),
        ("finetuning_type", "moe", "From the package neuronmoe-plugins; nothing else has to be installed or edited."),
    ]


def _render(header: list[str], sections: Sections) -> str:
    """YAML text with the header and the keys' comments."""
    lines = [f"# {line}" for line in header]
    for title, entries in sections.items():
        lines += ["", f"### {title}"]
        for key, value, comment in entries:
            text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10_000)
            text = text.removesuffix("\n").removesuffix("\n...")  # "..." ends a document that is only a scalar
            lines += [f"# {comment}", f"{key}: {text}"] if comment else [f"{key}: {text}"]
    return "\n".join(lines) + "\n"
