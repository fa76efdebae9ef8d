"""Values that are right by themselves and cannot work together, in one line each."""

from __future__ import annotations

from fairhuman.common.quoting import shown, shown_key
from fairhuman.config.deepspeed_section import deepspeed_problems
from fairhuman.config.names import column_names, held_out_keys
from fairhuman.config.schema import Config, Data, Fairness, Lora, Optimizer
from fairhuman.config.yaml_settings import near
from fairhuman.fairness.rules import NATIVE, WITH_ALPHA


def conflicts(config: Config) -> list[str]:
    """Return what cannot work together, one line each."""
    fairness = config.fairness
    return [
        *_model_conflicts(config),
        *_data_conflicts(config),
        *_objective_conflicts(config),
        *_fairness_conflicts(config),
        *_train_conflicts(config),
        *_best_conflicts(config),
        *_sample_conflicts(config),
        *_optimizer_conflicts(config),
        *_params_conflicts(config.optimizer),
        *_rate_conflicts(config),
        *_noise_conflicts(config),
        *deepspeed_problems(config.deepspeed, fairness.mode, fairness.solves),
    ]


def _model_conflicts(config: Config) -> list[str]:
    model, problems = config.model, []
    if model.config and not model.pretrained.endswith(".safetensors"):
        problems.append(
            f"model.config = {shown(model.config)}: describes a single .safetensors file, "
            f"and model.pretrained is {shown(model.pretrained)}; remove it"
        )
    if model.lora != Lora() and model.method != "lora":
        problems.append(
            f"model.method = {model.method!r}: model.lora is for method=lora; set that, or "
            "remove model.lora"
        )
    if model.quantize and model.method != "lora":
        problems.append(
            f"model.quantize = {model.quantize!r}: is for the frozen base of method=lora, and "
            f"model.method is {model.method!r}; remove it"
        )
    if model.quantize and model.lora.kind not in ("lora", "rslora"):
        problems.append(
            f"model.quantize = {model.quantize!r}: model.lora.kind = {model.lora.kind!r} reads the "
            "base's weights themselves; use kind=lora or rslora, or remove model.quantize"
        )
    if model.lora.kind == "rslora" and model.lora.alpha is None:
        problems.append(
            "model.lora.alpha = None: kind=rslora scales by alpha / sqrt(rank); give a number, "
            f"such as {model.lora.rank**0.5:.3g} for a scaling of 1"
        )
    if model.lora.kind == "dora" and model.lora.text_encoders:
        problems.append(
            "model.lora.text_encoders = True: diffusers loads a DoRA's magnitudes into the UNet "
            "alone, so that what was trained would be drawn otherwise; remove it, or use kind=lora"
        )
    if model.lora.factor is not None and model.lora.kind != "lokr":
        problems.append(
            f"model.lora.factor = {model.lora.factor}: is for kind=lokr, and model.lora.kind is "
            f"{model.lora.kind!r}; remove it"
        )
    if model.control and not model.conditioned:
        problems.append(
            f"model.control = {shown(model.control)}: is for method=controlnet or "
            f"t2i_adapter, and model.method is {model.method!r}"
        )
    zero = config.deepspeed.get("zero_optimization")
    if model.compile and isinstance(zero, dict) and zero.get("stage") == 3:
        problems.append(
            "model.compile = True: does not work under ZeRO-3, which fetches weights between the "
            "layers; use stage 2, or remove it"
        )
    return problems


def _data_conflicts(config: Config) -> list[str]:
    data, problems = config.data, _source_conflicts(config.data)
    columns = column_names(config.objectives.regions)
    named = {"data": data.columns}
    for place, source in enumerate(data.sources):
        named[f"data.sources[{place}]"] = source.columns or {}
    for key, name in ((key, name) for key, names in named.items() for name in names):
        if name not in columns:
            problems.append(
                f"{key}.columns.{shown_key(name)}: there is no such column{near(name, columns)}; "
                f"they are {', '.join(columns)}"
            )
    if data.buckets and data.resolution % data.bucket_step:
        problems.append(
            f"data.bucket_step = {data.bucket_step}: does not divide data.resolution = "
            f"{data.resolution}, so that no bucket would be square; choose one that does"
        )
    if data.condition_dropout and not config.model.conditioned:
        problems.append(
            f"data.condition_dropout = {data.condition_dropout}: method="
            f"{config.model.method} has no control images; remove it"
        )
    sides = {"data.resolution": data.resolution}
    if data.buckets:
        sides["data.bucket_step"] = data.bucket_step
    for key, side in sides.items():
        if config.model.method == "t2i_adapter" and side % 16:
            problems.append(f"{key} = {side}: must be a multiple of 16 for method=t2i_adapter")
    return problems


_NEAR_ONE = 1e-3
"""How far the shares of all sources may be from 1: thirds are written 0.333."""


def _source_conflicts(data: Data) -> list[str]:
    """Return what of the data sets cannot be, one line each."""
    if not data.sources:
        missing = "data.root: is missing and has no default; give it, or data.sources"
        return [] if data.root is not None else [missing]
    problems = []
    if data.root is not None:
        problems.append(
            f"data.sources: data.root = {shown(data.root)} is given too; set that to null, or "
            "data.sources to []"
        )
    if data.split is not None:
        problems.append(
            f"data.split = {shown(data.split)}: is of data.root; give each of data.sources its own"
        )
    for place, source in enumerate(data.sources):
        if source.share is not None and source.repeats != 1:
            problems.append(
                f"data.sources[{place}].repeats = {source.repeats}: share = {source.share:g} says "
                "how often its samples come; give one of them"
            )
    given = [source.share for source in data.sources if source.share is not None]
    total = sum(given)
    if len(given) == len(data.sources) and abs(total - 1) > _NEAR_ONE:
        problems.append(
            f"data.sources: their shares come to {total:.4g}, not to 1; change them, or leave out "
            "that of a source which is to have the rest"
        )
    if given and len(given) < len(data.sources) and total >= 1 - 1e-9:
        problems.append(
            f"data.sources: the shares come to {total:.4g}, and leave nothing for the sources "
            "without one; make them smaller"
        )
    return problems


def _objective_conflicts(config: Config) -> list[str]:
    problems = []
    for name in config.objectives.scale:
        known = ["global", *config.objectives.regions]
        if name not in known:
            problems.append(
                f"objectives.scale.{shown_key(name)}: there is no such objective"
                f"{near(name, known)}; they are {', '.join(known)}"
            )
    return problems


def _fairness_conflicts(config: Config) -> list[str]:
    fairness, problems = config.fairness, []
    balled = fairness.solves and fairness.normalize == "ball"
    if balled and config.train.max_grad_norm is None:
        problems.append(
            "train.max_grad_norm = None: fairness.normalize=ball scales each step to this norm; "
            "give a number, or set fairness.normalize to simplex or none"
        )
    if fairness.keep and not fairness.solves:
        problems.append(
            f"fairness.keep = {fairness.keep}: bounds weights that are solved for, and "
            f"fairness.mode={fairness.mode} solves for none; set fairness.mode to exact, "
            "amortized or sketch, or fairness.keep to 0"
        )
    return [*problems, *_rule_conflicts(fairness)]


def _rule_conflicts(fairness: Fairness) -> list[str]:
    """Return which keys are not those of fairness.rule and mode, one line each."""
    problems = []
    if not fairness.solves and fairness.rule != "mpd":
        problems.append(
            f"fairness.rule = {fairness.rule!r}: solves for weights, and fairness.mode="
            f"{fairness.mode} solves for none; set fairness.mode to exact, amortized or sketch, or "
            "remove it"
        )
    if fairness.rule not in WITH_ALPHA and fairness.alpha != Fairness().alpha:
        problems.append(
            f"fairness.alpha = {fairness.alpha}: fairness.rule={fairness.rule} has no alpha; "
            f"remove it, or set fairness.rule to {' or '.join(WITH_ALPHA)}"
        )
    if fairness.rule not in NATIVE and fairness.floor:
        problems.append(
            f"fairness.floor = {fairness.floor}: fairness.rule={fairness.rule} has no floor; "
            f"remove it, or set fairness.rule to one of {', '.join(NATIVE)}"
        )
    if fairness.dwa_window != Fairness().dwa_window and fairness.mode != "dwa":
        problems.append(
            f"fairness.dwa_window = {fairness.dwa_window}: only fairness.mode=dwa has windows; "
            "remove it"
        )
    return problems


def _train_conflicts(config: Config) -> list[str]:
    train, problems = config.train, []
    if train.steps is None and train.epochs is None:
        problems.append("train.steps: is missing; give it, or train.epochs")
    if train.steps is not None and train.epochs is not None:
        problems.append(
            f"train.epochs = {train.epochs:g}: train.steps = {train.steps} says how long the run "
            "is; set one of them to null"
        )
    if train.validate_every and not config.data.validation:
        problems.append(
            f"train.validate_every = {train.validate_every}: no image is held out; set "
            "data.validation to a number of images"
        )
    if train.push_checkpoints and train.push_to_hub is None:
        problems.append(
            "train.push_checkpoints = True: train.push_to_hub names no repository; set it, or "
            "remove this"
        )
    if train.wandb_name is not None and train.wandb is None:
        problems.append(
            f"train.wandb_name = {shown(train.wandb_name)}: names a run of Weights & "
            "Biases, and train.wandb names no project; set it, or remove train.wandb_name"
        )
    return problems


def _best_conflicts(config: Config) -> list[str]:
    """Return why train.keep_best cannot be had, one line each."""
    metric, problems = config.train.keep_best, []
    if metric is None:
        return []
    known = [k for name in ["global", *config.objectives.regions] for k in held_out_keys(name)]
    if metric not in known:
        problems.append(
            f"train.keep_best = {shown(metric)}: there is no such held-out loss"
            f"{near(metric, known)}; they are {', '.join(known)}"
        )
    elif not config.train.validate_every:
        problems.append(
            f"train.keep_best = {shown(metric)}: nothing is measured; set train.validate_every to "
            "a number of steps"
        )
    return problems


def _sample_conflicts(config: Config) -> list[str]:
    """Return what of the samples this method cannot draw, one line each."""
    train, method, problems = config.train, config.model.method, []
    if train.sample_lora_scale != 1 and method != "lora":
        problems.append(
            f"train.sample_lora_scale = {train.sample_lora_scale:g}: model.method is {method!r}, "
            "which has no LoRA; remove it"
        )
    for asked in train.sample_prompts:
        if asked.control and not config.model.conditioned:
            fix = f"model.method is {method!r}, which has no control images; remove it"
            problems.append(asked.refusal("control", fix))
        if asked.lora_scale is not None and method != "lora":
            fix = f"model.method is {method!r}, which has no LoRA; remove it"
            problems.append(asked.refusal("lora_scale", fix))
        if method == "t2i_adapter" and any(side % 16 for side in asked.size or ()):
            fix = "its sides must be multiples of 16 for method=t2i_adapter"
            problems.append(asked.refusal("size", fix))
    if method == "t2i_adapter" and any(side % 16 for side in train.sample_size or ()):
        problems.append(
            f"train.sample_size = {shown(train.sample_size)}: its sides must be multiples of 16 "
            "for method=t2i_adapter"
        )
    return problems


def warmup_problem(config: Config) -> str | None:
    """Return why the warm-up cannot end, where train.steps is known."""
    warmup, steps = config.optimizer.warmup_steps, config.train.steps
    if steps is None or warmup < steps:
        return None
    return f"optimizer.warmup_steps = {warmup}: must be less than train.steps = {steps}"


# diffusers' lr_end.
POLYNOMIAL_END = 1e-7


def _optimizer_conflicts(config: Config) -> list[str]:
    """Return what of the section optimizer cannot work, one line each."""
    optimizer, problems = config.optimizer, []
    if problem := warmup_problem(config):
        problems.append(problem)
    if optimizer.schedule == "polynomial" and optimizer.lr <= POLYNOMIAL_END:
        problems.append(
            f"optimizer.lr = {optimizer.lr}: schedule=polynomial ends at {POLYNOMIAL_END:g}; give "
            "more, or use schedule=linear"
        )
    if optimizer.cycles != 1 and optimizer.schedule != "cosine_with_restarts":
        problems.append(
            f"optimizer.cycles = {optimizer.cycles}: only schedule=cosine_with_restarts has "
            "cycles; remove it"
        )
    if optimizer.power != 1 and optimizer.schedule != "polynomial":
        problems.append(
            f"optimizer.power = {optimizer.power}: only schedule=polynomial has a power; remove it"
        )
    zero = config.deepspeed.get("zero_optimization")
    offload = zero.get("offload_optimizer") if isinstance(zero, dict) else None
    offloads = isinstance(offload, dict) and offload.get("device") == "cpu"
    if optimizer.name.endswith("8bit") and offloads:
        problems.append(
            f"optimizer.name = {optimizer.name!r}: under offload_optimizer bitsandbytes would step "
            "on the CPU, which for SDXL's UNet takes 105 core-seconds and 51 GB of temporaries a "
            "step; use AdamW, which takes a seventh of the time and no temporaries"
        )
    return problems


_PARAMS: dict[str, dict[str, tuple[type, float, float]]] = {
    "AdEMAMix8bit": {
        "alpha": (float, 0, 1e6),
        "beta3": (float, 0, 0.9999999),
        "t_alpha": (int, 1, 1e9),
        "t_beta3": (int, 1, 1e9),
    },
    "Adafactor": {"decay_rate": (float, -1, -1e-6)},
}
"""What optimizers take in optimizer.params: type, least, most."""


def _params_conflicts(optimizer: Optimizer) -> list[str]:
    """Return what of optimizer.params the optimizer does not take, one line each."""
    problems, known = [], _PARAMS.get(optimizer.name, {})
    for name, value in optimizer.params.items():
        key = f"optimizer.params.{shown_key(name)}"
        if name not in known:
            takes = f"; it takes {', '.join(known)}" if known else "; it takes none"
            problems.append(f"{key}: {optimizer.name} has no such{near(name, list(known))}{takes}")
            continue
        kind, least, most = known[name]
        if value != kind(value) or not least <= value <= most:
            what = "a whole number" if kind is int else "a number"
            problems.append(f"{key} = {value:g}: must be {what} from {least:g} to {most:.7g}")
    return problems


def _rate_conflicts(config: Config) -> list[str]:
    """Return learning rates of what is not trained, one line each."""
    optimizer, model, problems = config.optimizer, config.model, []
    lora = model.lora if model.method == "lora" else None
    if optimizer.text_encoder_lr is not None and not (lora and lora.text_encoders):
        problems.append(
            f"optimizer.text_encoder_lr = {optimizer.text_encoder_lr}: no text encoder is trained; "
            "set model.method=lora and model.lora.text_encoders=true, or remove it"
        )
    if optimizer.lora_plus_ratio != 1 and (lora is None or lora.of_lycoris):
        problems.append(
            f"optimizer.lora_plus_ratio = {optimizer.lora_plus_ratio}: there is no B to train "
            "faster; set model.method=lora with model.lora.kind=lora, dora or rslora, or remove it"
        )
    return problems


def _noise_conflicts(config: Config) -> list[str]:
    """Return what of the section noise cannot work with any model, one line each."""
    noise, problems = config.noise, []
    if noise.max_timestep is not None and noise.min_timestep >= noise.max_timestep:
        problems.append(
            f"noise.min_timestep = {noise.min_timestep}: must be less than noise.max_timestep = "
            f"{noise.max_timestep}"
        )
    if (noise.timesteps == "range") != (noise.bias_range is not None):
        wanted = "give [first, end]" if noise.timesteps == "range" else "set noise.timesteps=range"
        problems.append(
            f"noise.bias_range = {noise.bias_range and list(noise.bias_range)}: does not go with "
            f"noise.timesteps={noise.timesteps}; {wanted}"
        )
    elif noise.bias_range and noise.bias_range[0] >= noise.bias_range[1]:
        problems.append(
            f"noise.bias_range = {list(noise.bias_range)}: must end after it begins; write "
            "[first, end]"
        )
    if noise.zero_terminal_snr and config.model.prediction_type == "epsilon":
        problems.append(
            "noise.zero_terminal_snr = True: the noise tells nothing of the image at pure noise; "
            "set model.prediction_type=v_prediction"
        )
    return problems
