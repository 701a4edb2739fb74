"""config.json of the architecture `neuronmoe`, and the class by which transformers finds its models.

transformers loads both when it is imported itself: what models are made of is imported where one is made.
"""

from __future__ import annotations

from typing import Any

from transformers.configuration_utils import PretrainedConfig
from transformers.models.auto.configuration_auto import AutoConfig

from neuronmoe_plugins.errors import UserError, one_line

MODEL_TYPE = "neuronmoe"
ARCHITECTURE = "NeuronMoeForCausalLM"
FORMAT_VERSION = 1
# What readers of a configuration may look for beside the base model's, and not in it.
COPIED = ("tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id")
# What of a model's loading options concerns the place of its files.
HUB_OPTIONS = {"cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token"}
# What a model's own configuration says of itself, and not of the base.
OWN = {"architectures", "name_or_path", "transformers_version", "quantization_config"}


class NeuronMoeConfig(PretrainedConfig):  # type: ignore[misc]
    """A base model's configuration, and how many experts each of its layers has.

    What it lacks itself is read from the base's and, if the base's has it, written there: `hidden_size` or
    `use_cache` are those of `text_config`.

    Args:
        text_config: The base model's configuration, or its config.json.
        experts_per_layer: For each decoder layer, the base MLP included; 1 where it stays dense.
        num_experts_per_tok: The top-k, at most the experts of a layer.
        format_version: Of config.json and the tensors.
        kwargs: What all configurations of transformers have.

    Raises:
        UserError: if they do not belong together.
    """

    model_type = MODEL_TYPE
    sub_configs = {"text_config": AutoConfig}  # type: ignore[dict-item]  # noqa: RUF012
    # There are no defaults with which those of a file could be compared.
    has_no_defaults_at_init = True
    is_composition = True

    def __init__(
        self,
        text_config: PretrainedConfig | dict[str, Any] | None = None,
        experts_per_layer: list[int] | None = None,
        num_experts_per_tok: int | None = None,
        format_version: int | None = None,
        **kwargs: Any,
    ) -> None:
        if format_version != FORMAT_VERSION:
            raise UserError(
                f"format_version is {format_version!r}, and the installed neuronmoe-plugins reads {FORMAT_VERSION}: "
                "install the version that wrote the checkpoint"
            )
        base = _base_config(text_config)
        counts, topk = _checked_counts(base, experts_per_layer), _checked_topk(num_experts_per_tok)
        for key in COPIED:
            kwargs.pop(key, None)
        implementation = kwargs.get("attn_implementation")
        super().__init__(**kwargs)
        self.format_version = format_version
        self.experts_per_layer = counts
        self.num_experts_per_tok = topk
        self.text_config = base
        for key in COPIED:
            setattr(self, key, getattr(base, key, None))
        if implementation is not None:
            self._attn_implementation = implementation

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """From a file's content; raises `UserError`, which names the model if it is known."""
        try:
            return super().from_dict(config_dict, **kwargs)
        except UserError as error:
            raise UserError(f"config.json of {kwargs.get('name_or_path') or 'a neuronmoe model'}: {error}") from error

    def __getattr__(self, name: str) -> Any:
        base = self.__dict__.get("text_config")
        if base is None or name.startswith("_"):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        return getattr(base, name)

    def __setattr__(self, name: str, value: Any) -> None:
        base = self.__dict__.get("text_config")
        is_base = base is not None and not name.startswith("_") and name not in OWN and hasattr(base, name)
        if is_base:
            setattr(base, name, value)
        if not is_base or name in self.__dict__:
            super().__setattr__(name, value)


def _base_config(given: object) -> Any:
    if isinstance(given, PretrainedConfig):
        return given
    if not isinstance(given, dict) or not isinstance(given.get("model_type"), str):
        raise UserError("text_config must be the base model's configuration, with its model_type")
    try:
        return AutoConfig.for_model(**given)
    except Exception as error:  # whatever transformers raises at a configuration
        raise UserError(f"text_config: {one_line(error)}") from error


def _checked_counts(base: Any, experts: object) -> list[int]:
    if not isinstance(experts, list) or not all(type(count) is int and count > 0 for count in experts):
        raise UserError(f"experts_per_layer must be a list of counts, each at least 1; got {experts!r}")
    if len(experts) != base.num_hidden_layers:
        raise UserError(
            f"experts_per_layer has {len(experts)} counts, and the base model of text_config "
            f"{base.num_hidden_layers} layers"
        )
    return experts


def _checked_topk(topk: object) -> int:
    if type(topk) is not int or topk < 1:
        raise UserError(f"num_experts_per_tok must be a number of at least 1; got {topk!r}")
    return topk


class NeuronMoeForCausalLM:
    """Where transformers' AutoModelForCausalLM comes to for `neuronmoe`: models are of classes made for their bases."""

    config_class = NeuronMoeConfig

    @classmethod
    def from_pretrained(cls, name: Any, *args: Any, config: Any = None, **kwargs: Any) -> Any:
        """A model from its files, as every `from_pretrained` of transformers.

        Args:
            name: Folder or hub name.
            args: For the model's class.
            config: Its configuration; read from the files when not given.
            kwargs: As for any model.

        Raises:
            UserError: if the files lack tensors of the model, or have others.
        """
        from neuronmoe_plugins.architecture.model import model_class

        own = config
        if not isinstance(config, NeuronMoeConfig):
            where = {key: value for key, value in kwargs.items() if key in HUB_OPTIONS}
            own = NeuronMoeConfig.from_pretrained(config or name, **where)
        # Read once more there where none was given: the class tells options of its own from those of the configuration.
        return model_class(own, ARCHITECTURE).from_pretrained(name, *args, config=config, **kwargs)

    @classmethod
    def _from_config(cls, config: NeuronMoeConfig, **kwargs: Any) -> Any:
        """A model of random weights."""
        from neuronmoe_plugins.architecture.model import model_class

        return model_class(config, ARCHITECTURE)._from_config(config, **kwargs)
