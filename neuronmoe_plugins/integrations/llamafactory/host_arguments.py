"""What `finetuning_type: moe` does with the host's own fine-tuning arguments, and with some of its model arguments.

Every field of LLaMA-Factory's FinetuningArguments is in one of the tables below, so that none is without
effect and without a word.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, Field
from typing import Any

from neuronmoe_plugins.errors import UserError, did_you_mean
from neuronmoe_plugins.integrations.llamafactory.arguments import inherited_fields, words_of
from neuronmoe_plugins.integrations.llamafactory.learning_rates import OWN_RATES
from neuronmoe_plugins.tuner.config import LOSS_COEFFICIENTS


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


WORKS = _names("""
    stage finetuning_type additional_target pure_bf16 disable_shuffling early_stopping_steps plot_loss use_swanlab
    swanlab_project swanlab_workspace swanlab_run_name swanlab_mode swanlab_api_key swanlab_logdir
    swanlab_lark_webhook_url
    swanlab_lark_secret
""")
WORKS_IN_SFT = _names("""
    compute_accuracy include_effective_tokens_per_second use_dft_loss use_asft_loss asft_alpha use_eaft_loss
    eaft_alpha ref_model ref_model_adapters ref_model_quantization_bit
""")
# Of other methods and stages, and of optimizers and back ends that are refused.
WITHOUT_EFFECT = _names("""
    lora_alpha lora_dropout lora_rank lora_target loraplus_lr_ratio loraplus_lr_embedding use_rslora
    use_dora pissa_init pissa_iter pissa_convert create_new_adapter module_dropout oft_rank oft_block_size oft_target
    freeze_trainable_layers freeze_trainable_modules freeze_extra_modules freeze_vision_tower
    freeze_multi_modal_projector freeze_language_model pref_beta pref_ftx pref_bco_weight pref_loss
    dpo_label_smoothing ld_alpha kto_chosen_weight kto_rejected_weight simpo_gamma ppo_buffer_size ppo_epochs
    ppo_score_norm ppo_target ppo_whiten_rewards reward_model reward_model_adapters reward_model_quantization_bit
    reward_model_type galore_target galore_rank galore_update_interval galore_scale galore_proj_type galore_layerwise
    apollo_target apollo_rank apollo_update_interval apollo_scale apollo_proj apollo_proj_type apollo_scale_type
    apollo_layerwise apollo_scale_front badam_mode badam_start_block badam_switch_mode badam_switch_interval
    badam_update_ratio badam_mask_mode badam_verbose hyper_parallel_args
    hyper_parallel_cp_size megatron_bridge_args
""")
# Argument -> why it cannot work.
REFUSED = {
    "use_galore": "it projects the gradients of linear layers, which the experts are not",
    "use_apollo": "it projects the gradients of linear layers, which the experts are not",
    "use_badam": "it would train the base model block by block",
    "use_adam_mini": "it takes one step size for all experts of a layer",
    "use_muon": "it would train the routers alone with Muon, and the experts with AdamW",
    "use_llama_pro": "it trains blocks of the base model",
    "use_mca": "it has models of its own",
    "use_megatron_bridge": "it has a training loop of its own",
    "use_hyper_parallel": "it has a training loop of its own",
}
NEW_ROWS = (
    "the rows of new tokens would stay random, and the adapter could not be loaded: extend the base model first, by "
    "`neuronmoe vocabulary`"
)
REFUSED_OF_MODEL = {
    "use_unsloth": "it has models of its own",
    "use_kt": "it has models of its own",
    "mixture_of_depths": "it has models of its own",
    "train_from_scratch": "the random base model would stay as it is, and would not be saved",
    "quantization_bit": "load the base model unquantised, or one that is saved in 4 bits by bitsandbytes",
    "add_tokens": NEW_ROWS,
    "add_special_tokens": NEW_ROWS,
    "new_special_tokens_config": NEW_ROWS,
    "resize_vocab": NEW_ROWS,
}
WITHOUT_EFFECT_OF_MODEL = _names("""
    moe_aux_loss_coef init_special_tokens
    quantization_method quantization_type double_quantization quantization_device_map kt_weight_path
    kt_non_expert_weight_path kt_cpu_activation kt_config kt_optimize_rule kt_maxlen kt_mode kt_force_think
    kt_use_cuda_graph cpu_infer chunk_size mode
    kt_expert_checkpoint_path kt_use_lora_experts kt_lora_expert_num kt_lora_expert_intermediate_size vllm_maxlen
    vllm_gpu_util vllm_enforce_eager vllm_max_lora_rank vllm_config sglang_maxlen sglang_mem_fraction sglang_tp_size
    sglang_config sglang_lora_backend
""")
# Of the host's other classes, what is there in the versions that this package was tried with.
OF_MODEL = _names("""
    adapter_folder adapter_name_or_path audio_sampling_rate cache_dir crop_to_patches disable_gradient_checkpointing
    enable_liger_kernel export_device export_dir export_hub_model_id export_legacy_format export_quantization_bit
    export_quantization_dataset export_quantization_maxlen export_quantization_nsamples export_size flash_attn
    hf_hub_token image_do_pan_and_scan image_max_pixels image_min_pixels infer_backend infer_dtype low_cpu_mem_usage
    model_name_or_path model_revision ms_hub_token offload_folder om_hub_token print_param_status rope_scaling
    shift_attn split_special_tokens trust_remote_code upcast_layernorm upcast_lmhead_output use_audio_in_video
    use_fast_tokenizer use_kv_cache use_reentrant_gc use_unsloth_gc use_v1_kernels video_fps video_max_pixels
    video_maxlen video_min_pixels
""")
OF_DATA = _names("""
    buffer_size cutoff_len data_shared_file_system dataset dataset_dir default_system enable_thinking eval_dataset
    eval_num_beams eval_on_each_dataset ignore_pad_token_for_loss interleave_probs mask_history max_samples media_dir
    mix_strategy neat_packing overwrite_cache packing preprocessing_batch_size preprocessing_num_workers
    preserve_thinking streaming template tokenized_path tool_format train_on_prompt val_size
""")
OF_TRAINING = _names("""
    accelerator_config adam_beta1 adam_beta2 adam_epsilon auto_find_batch_size average_tokens_across_devices
    batch_eval_metrics bf16 bf16_full_eval data_seed dataloader_drop_last dataloader_in_order
    dataloader_multiprocessing_context dataloader_num_workers dataloader_persistent_workers dataloader_pin_memory
    dataloader_prefetch_factor ddp_backend ddp_broadcast_buffers ddp_bucket_cap_mb ddp_find_unused_parameters
    ddp_static_graph ddp_timeout debug deepspeed disable_tqdm do_eval do_predict do_train enable_jit_checkpoint
    enable_torch_profiler eval_accumulation_steps eval_delay eval_do_concat_batches eval_on_start eval_steps
    eval_strategy eval_use_gather_object fp16 fp16_full_eval fp8 fp8_backend fp8_enable_fsdp_float8_all_gather fsdp
    fsdp_config full_determinism generation_config generation_max_length generation_num_beams
    gradient_accumulation_steps gradient_checkpointing gradient_checkpointing_kwargs greater_is_better hub_always_push
    hub_model_id hub_private_repo hub_revision hub_strategy hub_token ignore_data_skip include_for_metrics
    include_num_input_tokens_seen label_names label_smoothing_factor learning_rate length_column_name
    liger_kernel_config load_best_model_at_end local_rank log_level log_level_replica log_on_each_node logging_dir
    logging_first_step logging_nan_inf_filter logging_steps logging_strategy lr_scheduler_kwargs lr_scheduler_type
    master_addr master_port max_grad_norm max_steps metric_for_best_model neftune_noise_alpha num_train_epochs optim
    optim_args optim_target_modules output_dir overwrite_output_dir parallelism_config per_device_eval_batch_size
    per_device_train_batch_size predict_with_generate prediction_loss_only profile_modules profiler_active_steps
    profiler_output_dir profiler_profile_memory profiler_record_shapes profiler_repeat profiler_wait_steps
    profiler_warmup_steps profiler_with_stack project push_to_hub ray_init_kwargs ray_num_workers
    remove_unused_columns report_to restore_callback_states_from_checkpoint resume_from_checkpoint run_name
    save_on_each_node save_only_model save_steps save_strategy save_total_limit seed skip_memory_metrics
    sortish_sampler tf32 torch_compile torch_compile_backend torch_compile_mode torch_empty_cache_steps
    trackio_bucket_id trackio_space_id trackio_static_space_id train_sampling_strategy use_cache use_cpu
    use_liger_kernel warmup_ratio warmup_steps weight_decay
    adafactor group_by_length include_inputs_for_metrics include_tokens_per_second no_cuda per_gpu_eval_batch_size
    per_gpu_train_batch_size placement_strategy push_to_hub_model_id push_to_hub_organization push_to_hub_token
    ray_run_name ray_scope ray_storage_filesystem ray_storage_path resources_per_worker use_mps_device
""")
OF_GENERATION = _names("""
    do_sample length_penalty max_length max_new_tokens num_beams repetition_penalty skip_special_tokens temperature
    top_k top_p
""")
KNOWN = (
    (WORKS | WORKS_IN_SFT | WITHOUT_EFFECT | REFUSED.keys())
    | (OF_MODEL | WITHOUT_EFFECT_OF_MODEL | REFUSED_OF_MODEL.keys())
    | (OF_DATA | OF_TRAINING | OF_GENERATION)
)
ALLOWED = "moe_allow_arguments"
HINTS = {"moe_aux_loss_coef": " (did you mean aux_loss_coef?)"}
GROUP_LOSSES = ("classify_loss_coef", "sequential_add_loss_coef")
TRAINING_ONLY = (
    *LOSS_COEFFICIENTS,
    *("aux_loss_per_sequence", "lpr_double_softmax", "train_only_router", "additional_target"),
    *("train_new_tokens", *OWN_RATES),
    *("generate_lang_mask", "original_languages", "sequential_add_mask"),
)
DEPENDENT = {"aux_loss_per_sequence": "aux_loss_coef", "lpr_double_softmax": "lpr_loss_coef"}
COUNTS = ("moe_num_experts", "ada_moe_num_experts_list")


def check_host_arguments(given: dict[str, Any], classes: Sequence[type]) -> list[str]:
    """Refuse what the host offers and `moe` cannot do, what would have no effect, and what nobody has tried with it.

    Args:
        given: The arguments that the user gave. One that is switched off (false or null) says nothing.
        classes: The dataclasses that the command's arguments are parsed into.

    Returns:
        What to warn of: the arguments that the user has let through.

    Raises:
        UserError: naming the arguments.
    """
    switched_on = {name: value for name, value in given.items() if value is not None and value is not False}
    for name, reason in (REFUSED | REFUSED_OF_MODEL).items():
        if name in switched_on:
            raise UserError(f"finetuning_type: moe does not work with {name}: {reason}")
    if switched_on.get("infer_backend", "huggingface") != "huggingface":
        raise UserError(f"infer_backend: {given['infer_backend']} knows no mixtures: set infer_backend: huggingface")
    unused = [name for name in switched_on if name in WITHOUT_EFFECT | WITHOUT_EFFECT_OF_MODEL]
    if unused:
        names = ", ".join(name + HINTS.get(name, "") for name in unused)
        raise UserError(f"no effect with finetuning_type: moe: {names}; remove {'it' if len(unused) == 1 else 'them'}")
    unused = [name for name in switched_on if name in WORKS_IN_SFT]
    if unused and switched_on.get("stage") == "pt":
        raise UserError(f"no effect with stage: pt: {', '.join(unused)}; remove, or set stage: sft")
    return check_unknown(given, [f for kind in classes for f in inherited_fields(kind) if f.init], KNOWN)


def check_unknown(given: dict[str, Any], of_host: list[Field[Any]], known: frozenset[str]) -> list[str]:
    """Refuse arguments of a later host, which may train something else; their defaults are what others get.

    Args:
        given: The arguments that the user gave, and ALLOWED, if anything is let through.
        of_host: All that the host has.
        known: Those that are in a table.

    Returns:
        What to warn of: the arguments that the user has let through.

    Raises:
        UserError: naming the arguments.
    """
    unknown = [f.name for f in of_host if f.name in given and f.name not in known and given[f.name] != default_of(f)]
    allowed = words_of(given.get(ALLOWED)) or []
    for name in allowed:
        if name in REFUSED | REFUSED_OF_MODEL:
            raise UserError(f"{ALLOWED}: {name} cannot be let through: {(REFUSED | REFUSED_OF_MODEL)[name]}")
        if name not in {f.name for f in of_host}:
            raise UserError(f"{ALLOWED}: the host has no argument {name}{did_you_mean(name, unknown)}")
    refused = [name for name in unknown if name not in allowed]
    if refused:
        them = "it" if len(refused) == 1 else "them"
        raise UserError(
            f"not known to work with finetuning_type: moe: {', '.join(refused)}; remove {them}, or let {them} through "
            f"by {ALLOWED}: {','.join(allowed + refused)}"
        )
    names = ", ".join(name for name in unknown if name in allowed)
    return [f"{ALLOWED}: not known to work with finetuning_type: moe: {names}"] if names else []


def default_of(one: Field[Any]) -> Any:
    """The value of an argument that is not given; MISSING where it must be."""
    return one.default if one.default_factory is MISSING else one.default_factory()


def check_inference(given: dict[str, Any]) -> None:
    """Refuse inference without an adapter, and with arguments that only training reads.

    Args:
        given: The arguments that the user gave.

    Raises:
        UserError: naming the arguments.
    """
    if not given.get("adapter_name_or_path"):
        raise UserError("finetuning_type: moe without training needs an adapter: set adapter_name_or_path")
    unused = [name for name in TRAINING_ONLY if given.get(name)]
    if unused:
        raise UserError(f"no effect without training: {', '.join(unused)}; remove, or set do_train: true")


def check_task(given: dict[str, Any]) -> None:
    """Refuse a run of `train` that would do nothing, or train on nothing.

    Raises:
        UserError: naming the missing arguments.
    """
    if not any(given.get(name) for name in ("do_train", "do_eval", "do_predict")):
        raise UserError("nothing to do: set do_train: true (or do_eval, do_predict)")
    if given.get("do_train") and not given.get("dataset"):
        raise UserError("dataset is missing: name the data sets to train on, as in dataset_info.json")


def check_training(given: dict[str, Any]) -> None:
    """Refuse losses without what they read, settings of losses that are not there, and an adapter of unknown size.

    Args:
        given: The arguments that the user gave.

    Raises:
        UserError: naming the arguments.
    """
    if not given.get("adapter_name_or_path"):
        if given.get("train_only_router"):
            raise UserError("train_only_router trains an existing adapter: set adapter_name_or_path to that of stage 1")
        if all(given.get(name) is None for name in COUNTS):
            raise UserError(
                "the number of experts is missing: set ada_moe_num_experts_list (per layer, as `neuronmoe allocate` "
                "writes it) or moe_num_experts (the same in all layers), or adapter_name_or_path to train an adapter "
                "further"
            )
    if given.get("lpr_loss_coef") and not given.get("generate_lang_mask"):
        raise UserError("lpr_loss_coef needs to know which tokens are in an old language: set generate_lang_mask: true")
    losses = [name for name in GROUP_LOSSES if given.get(name)]
    if losses and not given.get("sequential_add_mask"):
        raise UserError(
            f"{' and '.join(losses)}: the language group of each token is missing: set sequential_add_mask: true"
        )
    if given.get("sequential_add_mask") and not losses:
        raise UserError(f"sequential_add_mask has no effect without {' or '.join(GROUP_LOSSES)}")
    for name, loss in DEPENDENT.items():
        if given.get(name) and not given.get(loss):
            raise UserError(f"{name} has no effect without {loss}")
