"""The section `deepspeed` of a config: which keys it may have, of what types, and what conflicts.

DeepSpeed checks some of its keys, late, and with tracebacks; here every mistake is one line, told
before DeepSpeed is imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from fairhuman.common.quoting import shown, shown_key
from fairhuman.config.yaml_settings import Name, Section, bounded, explain, near

Bytes = Annotated[int, Field(ge=0, le=10**15)]
Scale = Annotated[int, Field(ge=1, le=2**32)]


class _HalfPrecision(Section):
    enabled: Any = "auto"  # refused with its own reason


class Fp16(_HalfPrecision):
    """DeepSpeed's fp16: the loss scale."""

    auto_cast: bool = False
    loss_scale: Annotated[float, Field(ge=0, le=2.0**32)] = 0.0
    """0: dynamic."""
    initial_scale_power: Annotated[int, Field(ge=0, le=32)] = 16
    loss_scale_window: Annotated[int, Field(ge=1, le=10**9)] = 1000
    hysteresis: Annotated[int, Field(ge=1, le=10**6)] = 2
    consecutive_hysteresis: bool = False
    min_loss_scale: Scale = 1
    fp16_master_weights_and_grads: Literal[False] = False


class Bf16(_HalfPrecision):
    """DeepSpeed's bf16."""

    check_grad_overflow: bool = True
    immediate_grad_update: bool = False
    bf16_master_weights_and_grads: Literal[False] = False
    bf16_optimizer_states: Literal[False] = False


class Offload(Section):
    """What both kinds of offload have, less what `_offload_conflicts` says."""

    device: Any = None
    nvme_path: None = None
    buffer_count: Annotated[int, Field(ge=1, le=10**6)] = 4
    pin_memory: bool = True


class OffloadOptimizer(Offload):
    """DeepSpeed's offload_optimizer."""

    pipeline_read: bool = False
    pipeline_write: bool = False
    fast_init: bool = False
    ratio: Annotated[float, Field(ge=0, le=1)] = 1.0
    super_offload: bool = False
    cpuadam_cores_perc: Annotated[float, Field(gt=0, le=1)] = 0.8


class OffloadParam(Offload):
    """DeepSpeed's offload_param."""

    buffer_size: Bytes = 10**8
    max_in_cpu: Bytes = 10**9


class Zero(Section):
    """DeepSpeed's zero_optimization, less what `_zero_conflicts` says."""

    stage: int = 0
    contiguous_gradients: bool = True
    reduce_scatter: bool = True
    reduce_bucket_size: Annotated[int, Field(ge=1, le=10**12)] = 5 * 10**8
    use_multi_rank_bucket_allreduce: bool = True
    allgather_partitions: bool = True
    allgather_bucket_size: Annotated[int, Field(ge=1, le=10**12)] = 5 * 10**8
    overlap_comm: bool | None = None
    compute_grad_norm: bool = True
    load_from_fp32_weights: bool = True
    offload_param: OffloadParam | None = None
    offload_optimizer: OffloadOptimizer | None = None
    sub_group_size: Annotated[int, Field(ge=1, le=10**15)] = 10**9
    stage3_prefetch_bucket_size: Bytes = 5 * 10**7
    stage3_param_persistence_threshold: Bytes = 10**5
    stage3_model_persistence_threshold: Annotated[int, Field(ge=0, lt=2**63)] = 2**63 - 1
    stage3_max_live_parameters: Bytes = 10**9
    stage3_max_reuse_distance: Bytes = 10**9
    stage3_gather_16bit_weights_on_model_save: bool = False
    stage3_gather_fp16_weights_on_model_save: bool = False
    stage3_use_all_reduce_for_fetch_params: bool = False
    stage3_allgather_sequential: bool = False
    ignore_unused_parameters: bool = True
    round_robin_gradients: bool = False
    parameter_alignment: bool = False
    zero_hpz_partition_size: int = 1
    memory_efficient_linear: bool = True
    pipeline_loading_checkpoint: bool = False
    override_module_apply: bool = True
    log_trace_cache_warnings: bool = False
    enable_sanity_checks: bool = False
    save_muon_momentum_buffer_in_memory: bool = False


class CommsLogger(Section):
    """DeepSpeed's comms_logger."""

    enabled: bool = False
    prof_all: bool = True
    prof_ops: Annotated[list[Name], Field(max_length=1000)] = []
    verbose: bool = False
    debug: bool = False


class Rest(Section):
    """The keys that are allowed next to zero_optimization."""

    fp16: Fp16 = Fp16()
    bf16: Bf16 = Bf16()
    communication_data_type: Literal["fp32", "fp16", "bf16"] | None = None
    comms_logger: CommsLogger = CommsLogger()
    memory_breakdown: bool = False
    dump_state: bool = False


# What DeepSpeed would read from its own config and train.* sets: "auto" is taken as "from train".
_OWNED = {
    "train_batch_size": "train.batch_size, train.gradient_accumulation and the number of ranks",
    "train_micro_batch_size_per_gpu": "train.batch_size",
    "gradient_accumulation_steps": "train.gradient_accumulation",
    "gradient_clipping": "train.max_grad_norm",
    "optimizer": "the section optimizer",
    "scheduler": "optimizer.schedule and optimizer.warmup_steps",
    "steps_per_print": "OUT/metrics.jsonl, which has every step",
}
_ALLOWED = [
    "zero_optimization",
    "fp16",
    "bf16",
    "communication_data_type",
    "comms_logger",
    "memory_breakdown",
    "dump_state",
]
_REFUSED = {
    "wall_clock_breakdown": (
        "its timers break when one graph is gone through backwards several times; remove it (the "
        "step's time is in OUT/metrics.jsonl)"
    ),
}


# Keys of zero_optimization that cannot work, or that nobody has tried with one gradient per
# objective, and why.
_REFUSED_ZERO = {
    "zenflow": "moves some parameters before all objectives are known; remove it",
    "zero_quantized_gradients": "rounds each objective's gradient to a few bits; remove it",
    "zero_quantized_weights": "rounds the weights at each use; remove it",
    "zero_quantized_nontrainable_weights": "rounds the weights at each use; remove it",
    "stage3_module_granularity_threshold": (
        "releases a whole block after its first of several backward passes; remove it"
    ),
    "leaf_module": "releases a whole block after its first of several backward passes; remove it",
    "mics_shard_size": "was never tried with one gradient per objective; remove it",
    "elastic_checkpoint": "is not supported by DeepSpeed any more; remove it",
    "legacy_stage1": "is not supported by DeepSpeed any more; remove it",
    "cpu_offload": "is an old name; use offload_optimizer: {device: cpu}",
    "cpu_offload_param": "is an old name; use offload_param: {device: cpu}",
    "cpu_offload_use_pin_memory": "is an old name; use offload_optimizer: {pin_memory: …}",
}


def deepspeed_problems(tree: Mapping[str, Any], mode: str, solves: bool) -> list[str]:
    """Return what of the section cannot work, one line each.

    Args:
        tree: the section.
        mode: fairness.mode.
        solves: whether that mode solves for the weights.
    """
    problems, rest = [], {}
    for key, value in tree.items():
        if key in _OWNED:
            if value != "auto":
                problems.append(
                    f"deepspeed.{key} = {shown(value)}: is set by {_OWNED[key]}; remove it"
                )
        elif key in _REFUSED:
            problems.append(f"deepspeed.{key}: {_REFUSED[key]}")
        elif key not in _ALLOWED:
            problems.append(
                f"deepspeed.{shown_key(key)}: is not supported{near(key, _ALLOWED)}; supported "
                f"are {', '.join(_ALLOWED)}"
            )
        elif key != "zero_optimization":
            rest[key] = _without_auto(value) if key in ("fp16", "bf16") else value
    problems += _type_problems(Rest, rest, "deepspeed.")
    for precision in ("fp16", "bf16"):
        section = rest.get(precision, {})
        if isinstance(section, dict) and "enabled" in section:
            problems.append(
                f"deepspeed.{precision}.enabled = {shown(section['enabled'])}: is set by "
                "train.precision; remove it"
            )
    bf16 = rest.get("bf16")
    if isinstance(bf16, dict) and bf16.get("check_grad_overflow") is False:
        problems.append(
            "deepspeed.bf16.check_grad_overflow = False: one NaN in a gradient would be taken into "
            "every weight; remove it"
        )
    return bounded(problems + _zero_conflicts(tree.get("zero_optimization", {}), mode, solves))


def _without_auto(section: Any) -> Any:
    """Leave out what is "auto", as DeepSpeed itself does."""
    if not isinstance(section, dict):
        return section
    return {key: value for key, value in section.items() if value != "auto"}


def _type_problems(model: type[Section], tree: dict[str, Any], prefix: str) -> list[str]:
    try:
        model.model_validate(tree)
    except ValidationError as error:
        return explain(error, model, prefix)
    return []


def _zero_conflicts(given: Any, mode: str, solves: bool) -> list[str]:
    """Return what of the section zero_optimization cannot work, one line each."""
    prefix = "deepspeed.zero_optimization"
    if not isinstance(given, dict):
        return [f"{prefix} = {shown(given)}: must hold keys such as stage"]
    problems = []
    stage = given.get("stage", 0)
    if type(stage) is not int or stage not in (1, 2, 3):
        problems.append(
            f"{prefix}.stage = {shown(stage)}: must be 1, 2 or 3 (stage 0 has no gradient shards "
            "to read, and steps wrongly under fp16)"
        )
    for key, reason in _REFUSED_ZERO.items():
        if given.get(key):
            problems.append(f"{prefix}.{key} = {shown(given[key])}: {reason}")
    zero = {k: v for k, v in _without_auto(given).items() if k not in ("stage", *_REFUSED_ZERO)}
    for key in ("offload_optimizer", "offload_param"):
        offload = zero.get(key)
        if isinstance(offload, dict):
            zero[key] = _without_auto(offload)
        elif offload is not None:
            del zero[key]
            problems.append(
                f"{prefix}.{key} = {shown(offload)}: must hold keys; write {{device: cpu}}"
            )
    wrong = _type_problems(Zero, zero, f"{prefix}.")
    if wrong:  # what follows takes the types for granted
        return problems + wrong
    if zero.get("zero_hpz_partition_size", 1) != 1:
        problems.append(
            f"{prefix}.zero_hpz_partition_size = {shown(zero['zero_hpz_partition_size'])}: was "
            "never tried with one gradient per objective; remove it"
        )
    if not zero.get("compute_grad_norm", True):
        problems.append(
            f"{prefix}.compute_grad_norm = {zero['compute_grad_norm']!r}: DeepSpeed tells by the "
            "norm that a step must be skipped; remove it"
        )
    distance = zero.get("stage3_max_reuse_distance", 0)
    if stage == 3 and solves and distance != 0:
        problems.append(
            f"{prefix}.stage3_max_reuse_distance = {distance!r}: is 0 under fairness.mode={mode} "
            "(over several backward passes DeepSpeed's look-ahead takes longer than they do); "
            "remove it"
        )
    for key in ("offload_optimizer", "offload_param"):
        problems += _offload_conflicts(f"{prefix}.{key}", zero.get(key), stage)
    return problems


def _offload_conflicts(key: str, offload: dict[str, Any] | None, stage: Any) -> list[str]:
    if not offload:
        return []
    problems = []
    device = offload.get("device")
    if device != "cpu":
        problems.append(
            f"{key}.device = {shown(device)}: must be cpu (other devices were never tried with one "
            f"gradient per objective); to offload nothing, remove {key.rpartition('.')[2]}"
        )
    if key.endswith("offload_param") and stage != 3:
        problems.append(f"{key}: the parameters are whole at stage {stage}; use stage 3")
    if offload.get("ratio", 1.0) != 1.0 or offload.get("super_offload"):
        name = "super_offload" if offload.get("super_offload") else "ratio"
        problems.append(
            f"{key}.{name} = {offload[name]!r}: works with DeepSpeed's own Adam only; remove it"
        )
    return problems
