"""A checkpoint of N ranks resumes on M, across ZeRO stages, offload and precisions.

Every launch writes and reads as many of them as it can, since starting DeepSpeed is what takes
time. What is read back goes through DeepSpeed's own `safe_get_full_*`.
"""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from forms import OFFLOAD, Form, Net, go, masters, p_shape
from ranks import run_ranks
from torch import Tensor, nn

from fairhuman.common.units import DTYPES

PARAM = {"offload_param": {"device": "cpu", "pin_memory": False}}
BEFORE, AFTER = 4, 2


def pair(old: Form, ranks: int, stage: int, zero: Any = None, precision: str = "") -> Any:
    new = Form(ranks, stage, zero or {}, precision or old.precision, old.optimizer)
    return old, new


EIGHT = "AdamW8bit"
# What DeepSpeed can read whole by itself.
FULL_MOMENTS = {"AdamW": ("exp_avg", "exp_avg_sq"), "Adafactor": ("exp_avg_sq",)}
EACH = 193 * 65  # elements of a matrix
TWO = Form(2, 2)
SUBGROUPS = Form(2, 3, OFFLOAD | {"sub_group_size": 9_000})
TWO_8BIT = Form(2, 2, optimizer=EIGHT)
FP16 = Form(2, 3, precision="fp16", optimizer=EIGHT)
BF16 = Form(2, 1, precision="bf16")
ADAFACTOR = Form(2, 2, optimizer="Adafactor")
LION, ADEMAMIX = Form(2, 2, optimizer="Lion8bit"), Form(2, 3, optimizer="AdEMAMix8bit")
PAIRS: list[tuple[Form, Form]] = [
    pair(TWO, 1, 2),
    pair(TWO, 3, 2, OFFLOAD),
    pair(TWO, 2, 1),
    pair(TWO, 2, 3),
    pair(TWO, 2, 2, {"parameter_alignment": True}),
    pair(Form(1, 1), 2, 2),
    pair(SUBGROUPS, 2, 2),
    pair(SUBGROUPS, 3, 3, OFFLOAD | PARAM),
    pair(TWO_8BIT, 1, 2),
    pair(TWO_8BIT, 3, 3),
    pair(TWO_8BIT, 2, 1, OFFLOAD),
    pair(Form(1, 1, optimizer=EIGHT), 2, 2, OFFLOAD),
    pair(FP16, 3, 2),
    pair(FP16, 1, 3, {"sub_group_size": 9_000}),
    pair(BF16, 3, 2),
    pair(BF16, 2, 3, OFFLOAD),
    pair(BF16, 1, 1, {}, "fp32"),
    pair(Form(2, 2, {"round_robin_gradients": True}), 3, 1, OFFLOAD),
    pair(Form(2, 3, optimizer="SGD"), 1, 1),
    pair(ADAFACTOR, 1, 3),
    pair(LION, 1, 3),
    pair(ADEMAMIX, 3, 2),
    # The matrices in one parameter group, and in one each.
    (TWO_8BIT, Form(2, 2, optimizer=EIGHT, largest_group=EACH)),
    (BF16, Form(3, 3, precision="bf16", largest_group=EACH)),
    (Form(2, 2, largest_group=EACH), Form(1, 2)),
    # The same form: DeepSpeed's own load.
    (TWO_8BIT, TWO_8BIT),
    (BF16, BF16),
    (ADAFACTOR, ADAFACTOR),
    (LION, LION),
    (ADEMAMIX, ADEMAMIX),
]
OLD_FORMS = sorted({old for old, _ in PAIRS}, key=str)
NAMES = [f"{old}->{new}" for old, new in PAIRS]
CASES = [(*forms, name) for forms, name in zip(PAIRS, NAMES, strict=True)]


def start(form: Form, model: nn.Module | None = None) -> Any:
    from deepspeed.accelerator import get_accelerator

    from fairhuman.zero import optimizers
    from fairhuman.zero.engine import make_engine

    optimizers.LARGEST_GROUP = form.largest_group
    get_accelerator().is_fp16_supported = lambda: True  # as in test_zero.py
    torch.manual_seed(0)
    return make_engine(form.config(), (model or Net()).to(DTYPES[form.precision]))


def moments_of(engine: Any, optimizer: str) -> dict[str, Tensor]:
    """The whole moments: torch's by DeepSpeed's own reading, 8-bit ones from all ranks' buffers."""
    from deepspeed.utils import safe_get_full_optimizer_state

    if optimizer in ("SGD", "Lion8bit", "AdEMAMix8bit") or engine.config["zero_optimization"].get(
        "round_robin_gradients"
    ):
        return {}
    if optimizer in FULL_MOMENTS:
        if engine.zero_optimization_stage() < 3:
            # DeepSpeed does it after the first group's first step, when the second has no state.
            engine.optimizer._hp_optimizer_states_linked = False
            engine.optimizer._lazy_init_hp_params_optimizer_state()
        return {
            f"{engine.param_names[p]} {key}": safe_get_full_optimizer_state(p, key).clone().cpu()
            for p in engine.module.parameters()
            if p.requires_grad
            for key in FULL_MOMENTS[optimizer]
        }
    return dequantised(engine)


def dequantised(engine: Any) -> dict[str, Tensor]:
    import torch.distributed as dist
    from bitsandbytes.functional import dequantize_blockwise

    from fairhuman.zero.shard_map import buffers_of

    found: dict[str, Tensor] = {}
    for name, shape in ((n, p_shape(p)) for n, p in engine.module.named_parameters()):
        for key in ("state1", "state2", "block1", "block2"):
            found[f"{name} {key}"] = torch.zeros(shape).reshape(-1)
    for buffer, flat in buffers_of(engine):
        state = engine.basic_optimizer.state[flat]
        for k in "12":
            values, scale = state[f"state{k}"], torch.zeros(flat.shape)
            if values.dtype == torch.uint8:
                absmax = state[f"absmax{k}"]
                values = dequantize_blockwise(
                    values, absmax=absmax, code=state[f"qmap{k}"], blocksize=256
                )
                scale = absmax.repeat_interleave(256)[: flat.numel()]
            for name, begin, count, offset in buffer.pieces:
                for key, source in ((f"state{k}", values), (f"block{k}", scale)):
                    found[f"{name} {key}"][begin : begin + count] = source[offset : offset + count]
    for tensor in found.values():
        dist.all_reduce(tensor)
    return found


def read(engine: Any, form: Form) -> dict[str, Any]:
    from fairhuman.zero.engine import gathered
    from fairhuman.zero.shard_map import shard_map_of

    with gathered(engine):
        computing = {n: p.detach().clone().float() for n, p in engine.module.named_parameters()}
    rates = engine.get_lr()
    states = [s for s in engine.basic_optimizer.state.values() if s]
    return {
        "masters": masters(engine),
        "moments": moments_of(engine, form.optimizer),
        "computing": computing,
        "steps": sorted({int(s["step"]) for s in states if "step" in s}),
        "bits": {str(s["state1"].dtype) for s in states if "state1" in s},
        "lr": {name: rates[group] for name, group in shard_map_of(engine).groups().items()},
        "scale": engine.optimizer.loss_scale if form.precision == "fp16" else None,
        "counts": (engine.global_steps, engine.global_samples, engine.skipped_steps),
    }


def write_checkpoints(folder: Path, ranks: int) -> dict[str, Any]:
    from fairhuman import checkpointing
    from fairhuman.checkpointing.manifest import Progress

    results = {}
    for form in OLD_FORMS:
        if form.ranks != ranks:
            continue
        engine = start(form)
        go(engine, range(BEFORE))
        saved = read(engine, form)
        checkpointing.Saver(engine, folder / str(form), 1).save(
            Progress(BEFORE, 18, 0), {"t": torch.ones(2), "n": 3}
        )
        go(engine, range(BEFORE, BEFORE + AFTER))
        results[str(form)] = (saved, read(engine, form))
        engine.destroy()
    return results


def load_checkpoints(folder: Path, ranks: int) -> dict[str, Any]:
    from fairhuman import checkpointing

    results = {}
    for (old, new), name in zip(PAIRS, NAMES, strict=True):
        if new.ranks != ranks:
            continue
        path = checkpoint_of(folder, old)
        engine = start(new)
        resharded = checkpointing.load(engine, path)
        loaded = read(engine, new)
        go(engine, range(BEFORE, BEFORE + AFTER))
        results[name] = (loaded, read(engine, new), resharded, checkpointing.load_balancer(path))
        engine.destroy()
    return results


class Other(Net):
    """Another model: one matrix is larger."""

    def __init__(self) -> None:
        super().__init__()
        self.outer = nn.Linear(193, 66)


def refused(form: Form, path: Path, model: nn.Module | None = None) -> str:
    """What loading says, on this rank."""
    from fairhuman import checkpointing
    from fairhuman.common.errors import ConfigError

    engine = start(form, model)
    try:
        checkpointing.load(engine, path)
    except ConfigError as error:
        return str(error)
    finally:
        engine.destroy()
    return ""


def break_checkpoints(folder: Path) -> None:
    """One damaged, one with a cut layout, one of before there were layouts."""
    for name in ("damaged", "cut", "old", "flipped"):
        shutil.copytree(checkpoint_of(folder, TWO), folder / name)
    (flipped,) = (folder / "flipped").rglob("*zero_pp_rank_1_*")
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 4
    flipped.write_bytes(content)
    # What digests do not find: files of before there were any, or with others made by hand.
    for name in ("damaged", "cut", "old"):
        without_digests(folder / name)
    (damaged,) = (folder / "damaged").rglob("*zero_pp_rank_1_*")  # the other rank's, not the first
    damaged.write_bytes(b"x" * damaged.stat().st_size)
    cut = json.loads((folder / "cut" / "layout.json").read_text())
    cut["ranks"][1][0][2].pop()
    (folder / "cut" / "layout.json").write_text(json.dumps(cut))
    manifest = json.loads((folder / "cut" / "manifest.json").read_text())
    manifest["files"]["layout.json"] = (folder / "cut" / "layout.json").stat().st_size
    (folder / "cut" / "manifest.json").write_text(json.dumps(manifest))
    (folder / "old" / "layout.json").unlink()
    manifest = json.loads((folder / "old" / "manifest.json").read_text())
    for key in ("setup", "global_batch", "versions"):
        del manifest[key]
    del manifest["files"]["layout.json"]
    (folder / "old" / "manifest.json").write_text(json.dumps(manifest))


def without_digests(folder: Path) -> None:
    """As a FairHuman wrote it that did not yet take digests."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest = {key: value for key, value in manifest.items() if not key.startswith("digest")}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def load_broken(folder: Path) -> dict[str, str]:
    """What checkpoints that cannot be loaded say, and one of before there were layouts."""
    import torch.distributed as dist

    dist.barrier()  # the others have noted what is there
    if dist.get_rank() == 0:
        break_checkpoints(folder)
    dist.barrier()
    whole, other_stage = checkpoint_of(folder, TWO), Form(2, 3)
    return {
        "another model": refused(TWO, whole, Other()),
        "another model, resharded": refused(other_stage, whole, Other()),
        "another optimizer": refused(TWO_8BIT, whole),
        "damaged": refused(TWO, folder / "damaged"),
        "damaged, resharded": refused(other_stage, folder / "damaged"),
        "flipped": refused(TWO, folder / "flipped"),
        "cut layout": refused(other_stage, folder / "cut"),
        "old": refused(TWO, folder / "old"),
    }


# Ranks of the launches, one after the other, and whether they write. Two ranks read what one rank
# wrote and what they wrote themselves.
LAUNCHES = ((1, True), (2, True), (3, False), (1, False))


def launch(folder: Path, ranks: int, write: bool) -> dict[str, Any]:
    results: dict[str, Any] = {"written": write_checkpoints(folder, ranks) if write else {}}
    if not (write and ranks == 1):
        results["loaded"] = load_checkpoints(folder, ranks)
    if ranks == 2:
        before = times(folder)
        results["refused"] = load_broken(folder)
        results["touched"] = {p for p, time in times(folder).items() if before.get(p, time) != time}
    return results


def checkpoint_of(folder: Path, form: Form) -> Path:
    return folder / str(form) / "checkpoints" / f"step-{BEFORE:08d}"


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path != folder}


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> list[list[dict[str, Any]]]:
    """What each rank of each launch returned."""
    folder = tmp_path_factory.mktemp("checkpoints")
    return [run_ranks(launch, ranks, folder, ranks, write) for ranks, write in LAUNCHES]


@pytest.fixture(scope="module")
def written(launched: list[list[dict[str, Any]]]) -> dict[str, Any]:
    return {name: found for ranks in launched for name, found in ranks[0]["written"].items()}


@pytest.fixture(scope="module")
def loaded(launched: list[list[dict[str, Any]]]) -> dict[str, Any]:
    return {name: found for ranks in launched for name, found in ranks[0].get("loaded", {}).items()}


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.mark.parametrize(("old", "new", "name"), CASES, ids=NAMES)
def test_weights_and_float32_moments_arrive_bit_by_bit(
    written: Any, loaded: Any, old: Form, new: Form, name: str
) -> None:
    saved, _ = written[str(old)]
    found, _, resharded, balancer = loaded[name]
    assert resharded == (old != new)
    if saved["masters"]:
        assert distance(saved["masters"], found["masters"]) == 0
    for key, value in found["masters"].items():
        assert torch.equal(found["computing"][key], value.to(DTYPES[new.precision]).float())
    if old.precision == new.precision:
        assert distance(saved["computing"], found["computing"]) == 0
    if old.optimizer in FULL_MOMENTS and saved["moments"]:
        assert distance(saved["moments"], found["moments"]) == 0
        assert any(value.any() for value in found["moments"].values())
    for key in ("lr", "counts", "scale", "steps"):
        if key != "scale" or old.precision == new.precision:
            assert found[key] == saved[key], key
    assert balancer["n"] == 3
    assert torch.equal(balancer["t"], torch.ones(2))


EIGHT_BIT = [case for case in CASES if case[0].optimizer == EIGHT]


@pytest.mark.parametrize(("old", "new", "name"), EIGHT_BIT)
def test_8_bit_moments_arrive_within_one_quantisation(
    written: Any, loaded: Any, old: Form, new: Form, name: str
) -> None:
    saved, found = written[str(old)][0], loaded[name][0]
    assert found["bits"] == saved["bits"] == {"torch.uint8", "torch.float32"}
    before, after = saved["moments"], found["moments"]
    # Half of the widest gap between two codes. A value that rounds to -0.993 has none at -1.
    for moment, half_gap in (("1", 0.00705), ("2", 0.00355)):
        for layer in ("inner.weight", "outer.weight"):
            blocks = torch.maximum(*(x[f"{layer} block{moment}"] for x in (before, after)))
            change = (before[f"{layer} state{moment}"] - after[f"{layer} state{moment}"]).abs()
            assert (change <= half_gap * blocks + 1e-30).all()
            assert before[f"{layer} state{moment}"].any()
            # Where ranks and cuts are the same, other stages and offloads change nothing.
            cut_alike = (old.ranks, old.largest_group) == (new.ranks, new.largest_group)
            assert not cut_alike or new.stage == 3 or not change.any()
    for vector in ("inner.bias", "outer.bias", "shifts"):
        for moment in "12":
            assert torch.equal(before[f"{vector} state{moment}"], after[f"{vector} state{moment}"])


@pytest.mark.parametrize(("old", "new", "name"), CASES, ids=NAMES)
def test_going_on_is_as_never_having_stopped(
    written: Any, loaded: Any, old: Form, new: Form, name: str
) -> None:
    saved, expected = written[str(old)]
    found = loaded[name][1]
    key = "masters" if saved["masters"] else "computing"
    moved = distance(saved[key], expected[key])
    assert moved > 1e-5
    error = distance(expected[key], found[key])
    if old == new:
        assert error == 0
    elif old.optimizer == "Lion8bit":
        # A sign flips where the quantisation takes a moment to its other side.
        flipped = [(expected[key][name] - p).abs() > 1e-6 for name, p in found[key].items()]
        assert torch.cat([part.reshape(-1) for part in flipped]).float().mean() < 0.02
    elif old.optimizer in (EIGHT, "AdEMAMix8bit"):
        # Two 8-bit runs that differ by one quantisation of the moments, a few percent of the
        # smallest ones, differ by as much of their updates.
        assert error <= 0.2 * moved
    elif old.precision != "fp32":
        assert error <= 0.1 * moved  # gradients round otherwise
    else:
        assert error <= 3e-8  # two units in the last place: sums over the batch in another order
    assert found["lr"] == expected["lr"]
    assert found["counts"] == expected["counts"]


def test_what_cannot_be_loaded_is_one_error_on_every_rank(
    launched: list[list[dict[str, Any]]],
) -> None:
    expected = {
        "another model": "holds another model than the section model: 2 of 5 trained "
        "parameters differ, such as outer.bias ([65] there, [66] here)",
        "another model, resharded": "holds another model than the section model",
        "another optimizer": "was made with AdamW, whose state it cannot take over; set "
        "optimizer.name=AdamW",
        "damaged": "cannot be read (",
        "damaged, resharded": "cannot be read (",
        "flipped": "_optim_states.pt is not what was written",
        "cut layout": "elements of outer.weight; the checkpoint is broken",
    }
    for results in launched[1]:
        found = results["refused"]
        assert found.pop("old") == ""  # at the same number of ranks it still loads
        assert found.keys() == expected.keys()
        for name, text in expected.items():
            assert text in found[name], (name, found[name])
        assert not results["touched"]


def test_a_layout_finds_any_part_of_a_parameter() -> None:
    from fairhuman.zero.shard_map import Buffer, Piece, ShardMap, overlaps

    pieces = [Piece("a", 0, 3, 2), Piece("a", 3, 5, 0), Piece("a", 8, 2, 1)]
    layout = ShardMap({"a": (2, 5)}, [[Buffer(0, 6, [piece])] for piece in pieces])
    store = [[-1, -1, 0, 1, 2], [3, 4, 5, 6, 7], [-1, 8, 9]]
    for start, stop in itertools.combinations(range(11), 2):
        found = [-1] * (stop - start)
        for rank, _, offset, numel, at in overlaps(
            layout.index()["a"], Piece("a", start, stop - start, 0)
        ):
            found[at : at + numel] = store[rank][offset : offset + numel]
        assert found == list(range(start, stop))


@pytest.mark.parametrize("name", [EIGHT, "Lion8bit", "AdEMAMix8bit"])
@pytest.mark.parametrize(("old", "new"), [(5_000, 3_000), (3_000, 5_000)])
def test_a_buffer_s_size_decides_between_8_and_32_bits(name: str, old: int, new: int) -> None:
    """As bitsandbytes itself does: 4096 elements and more are kept in 8 bits."""
    from fairhuman.zero import optimizer_state as moments
    from fairhuman.zero.optimizers import make_optimizer

    def optimizer(size: int) -> Any:
        made = make_optimizer(
            Form(1, 2, optimizer=name).config(), {"x": nn.Parameter(torch.eye(9))}
        )
        made.param_groups[0]["params"] = [nn.Parameter(torch.zeros(size))]
        return made, made.param_groups[0]["params"][0]

    first, flat = optimizer(old)
    flat.grad = torch.linspace(-1, 1, old)
    first.step()
    state = first.state[flat]
    second, other = optimizer(new)
    part = min(old, new)

    def fill(moment: str, whole: Tensor) -> None:
        whole[:part] = moments.read(state, moment, 0, part)

    moments.install(second, 0, other, state, fill)
    made = second.state[other]
    assert (made["state1"].dtype == torch.uint8) == (new >= 4096)
    assert made["step"] == 1
    names = {EIGHT: ["state1", "state2"], "Lion8bit": ["state1"]}
    assert moments.moments(made) == names.get(name, ["state1/0", "state1/1", "state2"])
    for moment in moments.moments(made):
        a, b = (moments.read(s, moment, 0, part) for s in (state, made))
        half_gap = 0.00355 if moment == "state2" else 0.00705
        assert a.any()
        assert (a - b).abs().max() <= half_gap * a.abs().max()
    other.grad = torch.ones(new)
    second.step()
    assert made["step"] == 2
