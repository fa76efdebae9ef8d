"""The memory that each GPU needs to train by a config: part by part, phase by phase, no weights.

Formulas of `planning` for what ZeRO shards, counts of `activations` for what the passes hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from fairhuman.common.units import DTYPES, GIB
from fairhuman.config import Config
from fairhuman.kernels.chunks import MIN_PROGRAMS
from fairhuman.models.empty import empty_model
from fairhuman.models.parts import models_of
from fairhuman.models.quantized import quantized_layers
from fairhuman.planning.activations import Activations, count
from fairhuman.planning.plan import Plan
from fairhuman.training.balancers.sketch import PENDING
from fairhuman.zero.engine import zero_config

CARDS = (8, 12, 16, 24, 32, 40, 48, 80, 141)
"""Memory of common GPUs, in GiB."""
SPARE = 0.1
"""Share of a GPU's memory that is left to what is not counted."""


@dataclass(frozen=True)
class Memory:
    """What each of the GPUs needs. Bytes."""

    gpus: int
    trained: int
    """Parameters."""
    frozen: int
    """Parameters of the same model that stay as they are, quantized ones included."""
    described_by: str
    """Whose configs gave the sizes."""
    phases: dict[str, dict[str, float]]
    """Of each phase, its parts on the GPU; the same parts in every phase."""
    host: dict[str, float]
    """What is offloaded to the CPU's memory, for each GPU."""

    @property
    def peak(self) -> str:
        """The phase that needs the most."""
        return max(self.phases, key=self.total)

    def total(self, phase: str) -> float:
        """Return what a phase needs in total."""
        return sum(self.phases[phase].values())

    def fits(self) -> dict[int, str]:
        """Say of each of the CARDS whether the peak fits: `yes`, `tight` or `no`."""
        peak = self.total(self.peak) / GIB
        return {
            card: "yes" if peak <= (1 - SPARE) * card else "tight" if peak <= card else "no"
            for card in CARDS
        }

    def lines(self) -> Iterator[str]:
        """Yield the plan as text."""
        frozen = f", {self.frozen / 1e6:.4g} million frozen" if self.frozen else ""
        yield (
            f"{self.trained / 1e6:.4g} million parameters trained{frozen}; sizes by the configs of "
            f"{self.described_by}"
        )
        yield ""
        yield from _table(
            f"GiB on each of {self.gpus} GPUs" if self.gpus > 1 else "GiB on one GPU", self.phases
        )
        yield ""
        yield f"the most: {self.total(self.peak) / GIB:.1f} GiB, in phase {self.peak!r}"
        if self.host:
            parts = ", ".join(f"{name} {size / GIB:.1f}" for name, size in self.host.items())
            yield f"on the host, for each GPU: {sum(self.host.values()) / GIB:.1f} GiB ({parts})"
        cards = ", ".join(f"{card} GiB {fit}" for card, fit in self.fits().items())
        yield f"fits, with {SPARE:.0%} to spare: {cards}"
        yield (
            "computed, not measured; not counted: the CUDA context, workspaces of convolutions, "
            "NCCL's buffers, rounding and gaps of the allocator"
        )

    def as_json(self) -> dict[str, Any]:
        """Return the plan for `--json`."""
        return {**asdict(self), "peak": self.peak, "fits": self.fits()}


@dataclass(frozen=True)
class Sizes:
    """What a config's model needs on any number of GPUs: counted once, in seconds."""

    trained: int
    frozen: int
    """Parameters in the weights' own precision."""
    quantized: int
    """Parameters in fewer bits."""
    quantized_bytes: int
    encoders: int
    """Bytes of the VAE and of text encoders that are not trained."""
    leaving: int
    """Bytes of those text encoders that leave once prompts are encoded, with data.cache."""
    activations: Activations
    described_by: str

    @classmethod
    def of(cls, config: Config) -> Sizes:
        """Count them; no weights are read.

        Raises:
            ConfigError: the model's folder is not whole.
        """
        dtype = DTYPES[config.train.precision]
        family, method, described_by = empty_model(config.model, dtype)
        parameters = list(method.module.parameters())
        within = set(map(id, parameters))  # text encoders that are trained
        held = sum(
            p.numel() * p.element_size()
            for part in models_of(family.pipeline).values()
            if part is not family.denoiser
            for p in part.parameters()
            if id(p) not in within
        )
        trained = sum(p.numel() for p in parameters if p.requires_grad)
        frozen = sum(p.numel() for p in parameters) - trained
        vae = sum(p.numel() * p.element_size() for p in family.vae.parameters())
        leaving = held - vae if family.draws_without_text else 0
        quantized = quantized_layers(method.module)
        return cls(
            trained,
            frozen,
            quantized=sum(layer.in_features * layer.out_features for layer in quantized),
            quantized_bytes=sum(b.nbytes for layer in quantized for b in layer.buffers()),
            encoders=held,
            leaving=leaving,
            activations=count(config, family, method, dtype),
            described_by=described_by,
        )


def plan_memory(config: Config, sizes: Sizes, gpus: int) -> Memory:
    """Plan the memory of each of so many GPUs.

    Raises:
        ConfigError: DeepSpeed refuses its section.
    """
    zero = zero_config(config)
    plan = Plan(
        sizes.trained,
        gpus,
        zero.stage,
        config.fairness.mode,
        objectives=1 + len(config.objectives.regions),
        precision=config.train.precision,
        optimizer=config.optimizer.name,
        micro_batches=config.train.gradient_accumulation,
        frozen=sizes.frozen,
        quantized=sizes.quantized_bytes,
        offload_optimizer=zero.offload_optimizer is not None,
        offload_parameters=zero.offload_param is not None,
        overlap=zero.overlap_comm,
        bucket=zero.reduce_bucket_size,
        recomputes=config.model.gradient_checkpointing,
        live=zero.max_live_parameters,
    )
    return Memory(
        gpus,
        sizes.trained,
        sizes.frozen + sizes.quantized,
        sizes.described_by,
        phases=_phases(config, plan, sizes),
        host=_host(config, plan),
    )


def _phases(config: Config, plan: Plan, sizes: Sizes) -> dict[str, dict[str, float]]:
    """Return the parts of each phase of a run, in the order of their first time."""
    counted, encoders = sizes.activations, float(sizes.encoders)
    cached = config.data.cache is not None
    whole = plan.whole_weight_bytes()
    held = _held(config, plan) | {"VAE, text encoders": 0.0 if cached else encoders}
    if plan.stage == 3:
        held |= {"gradients": plan.gradient_bytes() - plan.row_bytes()}
        held |= {"buffers": plan.working_bytes()}
    gathered = {"gathered weights": whole if plan.stage == 3 else 0.0}
    step = held | {
        "gradients": plan.gradient_bytes() - plan.row_bytes(),
        "balancer": plan.row_bytes() + _sketches(config, plan.parameters),
        "inputs": counted.inputs,
    }
    phases: dict[str, dict[str, float]] = {}
    if cached:  # before there is an engine; what is trained is still on the host
        phases["cache"] = {"VAE, text encoders": encoders, "activations": counted.encoding}
    else:
        phases["encoding"] = held | {"inputs": counted.inputs, "activations": counted.encoding}
    phases["backward"] = step | {
        "gradients": step["gradients"] + plan.arriving_bytes(),
        "buffers": plan.working_bytes(),
        "activations": counted.step,
    }
    phases["optimizer"] = step | {"copies, scratch": plan.step_bytes()}
    if config.train.validate_every:
        encoding = 0 if cached else counted.encoding
        phases["validation"] = held | gathered | {"activations": max(encoding, counted.forward)}
    if config.train.sample_every:
        kept = sizes.leaving if cached else 0
        drawing = {"VAE, text encoders": encoders - kept, "activations": counted.drawing}
        phases["samples"] = held | gathered | drawing
    return _same_parts(phases)


def _held(config: Config, plan: Plan) -> dict[str, float]:
    """Return what is on the GPU for the whole run but the encoders."""
    off = plan.offload_optimizer
    return {
        "weights": 0.0 if plan.offload_parameters else plan.weight_bytes(),
        "quantized weights": plan.quantized,
        "master weights": 0.0 if off else plan.master_bytes(),
        "optimizer states": 0.0 if off else plan.moment_bytes(),
        "gradient sums": plan.sum_bytes(),
        "EMA": 0.0 if off else _average(config, plan),
    }


def _host(config: Config, plan: Plan) -> dict[str, float]:
    """Return what is in the CPU's memory, for one GPU; nothing without offload."""
    parts = {"weights": plan.weight_bytes()} if plan.offload_parameters else {}
    if plan.offload_optimizer:
        parts |= {
            "master weights": plan.master_bytes(),
            "optimizer states": plan.moment_bytes(),
            "EMA": _average(config, plan),
        }
        parts["gradients"] = plan.host_bytes() - sum(parts.values()) + parts["EMA"]
    return {name: size for name, size in parts.items() if size}


def _average(config: Config, plan: Plan) -> float:
    return plan.master_bytes() if config.train.ema_decay else 0.0


def _sketches(config: Config, trained: int) -> float:
    """Return what `sketch` takes: rows in float64, gradients that wait, the kernel's sums."""
    if config.fairness.mode != "sketch":
        return 0.0
    rows = 1 + len(config.objectives.regions)
    waiting = min(trained, PENDING) * DTYPES[config.train.precision].itemsize
    return config.fairness.sketch_size * (8.0 * rows + 4 * 2 * MIN_PROGRAMS) + waiting


_PARTS = (
    "weights",
    "gathered weights",
    "quantized weights",
    "master weights",
    "optimizer states",
    "EMA",
    "gradient sums",
    "VAE, text encoders",
    "gradients",
    "balancer",
    "buffers",
    "copies, scratch",
    "inputs",
    "activations",
)


def _same_parts(phases: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Give all phases the same parts, in order, without those that are nowhere."""
    names = [name for name in _PARTS if any(parts.get(name) for parts in phases.values())]
    return {
        phase: {name: parts.get(name, 0.0) for name in names} for phase, parts in phases.items()
    }


def _table(title: str, phases: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    columns = list(phases.values())
    width = max(len(title), *map(len, columns[0]))
    yield f"{title:<{width}}" + "".join(f"{phase:>12}" for phase in phases)
    for name in columns[0]:
        cells = [f"{parts[name] / GIB:>12.2f}" if parts[name] else " " * 12 for parts in columns]
        yield f"{name:<{width}}{''.join(cells)}".rstrip()
    totals = "".join(f"{sum(parts.values()) / GIB:>12.2f}" for parts in columns)
    yield f"{'total':<{width}}{totals}"
