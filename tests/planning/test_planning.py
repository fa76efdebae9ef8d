"""The planning page: its formulas agree with running engines, and the page with its formulas."""

from __future__ import annotations

import gc
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import run_ranks
from small_unet import TINY

from fairhuman.common.units import DTYPES, GIB
from fairhuman.config.schema import Data
from fairhuman.data.cache import as_stored, encode
from fairhuman.data.cache_shards import read_index, write_shards
from fairhuman.data.keys import BYTES
from fairhuman.models.encoded import Posterior, Prompt
from fairhuman.models.formats.pipeline_folder import COMPONENTS, PipelineFolder
from fairhuman.planning import cache_benchmark
from fairhuman.planning.__main__ import tables
from fairhuman.planning.data_costs import DataCosts, table
from fairhuman.planning.plan import FROZEN_BYTES, SDXL_PARAMETERS, Plan

ROOT = Path(__file__).resolve().parents[2]
BUCKET, LIVE = 100_000, 1
CASES = [
    (1, "bf16", "exact"),
    (1, "bf16", "global"),
    (1, "fp32", "exact"),
    (2, "bf16", "exact"),
    (2, "bf16", "global"),
    (2, "fp32", "sketch"),
    (3, "bf16", "exact"),
    (3, "fp32", "global"),
    (3, "fp32", "sketch"),
]


def write_zero(folder: Path) -> None:
    """Write a DeepSpeed config for each stage, as the planned buckets and limits say."""
    for stage in (1, 2, 3):
        zero: dict[str, Any] = {"stage": stage, "reduce_bucket_size": BUCKET}
        if stage == 3:
            zero |= {
                "stage3_max_live_parameters": LIVE,
                "stage3_param_persistence_threshold": 0,
                "stage3_prefetch_bucket_size": 0,
                "stage3_max_reuse_distance": 0,
            }
        (folder / f"zero{stage}.json").write_text(json.dumps({"zero_optimization": zero}))


def count(folder: str) -> list[dict[str, float]]:
    """Count a rank's tensors before a step, and what it sends in one, for every case."""
    from fairhuman.planning import step_benchmark as bench
    from fairhuman.training.balancers import sketch

    bench.UNETS["small"] = TINY
    sketch.PENDING = BUCKET // 10  # of a small net all gradients would wait
    return [
        count_one(mode, precision, str(Path(folder) / f"zero{stage}.json"))
        for stage, precision, mode in CASES
    ]


def count_one(mode: str, precision: str, deepspeed: str) -> dict[str, float]:
    from fairhuman.planning import step_benchmark as bench
    from fairhuman.planning.fake_memory import FakeMemory
    from fairhuman.planning.traffic import Traffic
    from fairhuman.training.step import make_balancer
    from fairhuman.zero.engine import make_engine

    device = torch.device("cpu")
    config = bench._config(mode, device, 1, 1, 1, deepspeed)
    train = config.train.model_copy(update={"precision": precision})
    config = config.model_copy(update={"train": train})
    before = tensors()  # kept, so that their places are not given out again
    unet = bench._unet("small", device, precision, False)
    parameters = sum(p.numel() for p in unet.parameters())
    engine = make_engine(config, unet)
    balancer = make_balancer(config, engine)
    step = bench._Step(config, engine, balancer, TINY, device)
    step()
    held: list[float] = []
    peak: list[float] = []
    take = balancer.step

    def counted() -> Any:
        held.append(live_bytes(before))
        peak.append(footprint.peak)
        return take()

    balancer.step = counted  # type: ignore[method-assign]
    gc.collect()
    with FakeMemory(tensors()) as footprint, Traffic() as traffic:
        step()
    engine.destroy()
    return {
        "parameters": parameters,
        "held": held[0],
        "peak": peak[0],
        "sent": traffic.bytes,
    }


def tensors() -> list[torch.Tensor]:
    """Return all tensors that Python can reach."""
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = [thing for thing in gc.get_objects() if isinstance(thing, torch.Tensor)]
        return found + [tensor.grad for tensor in found if tensor.grad is not None]


def live_bytes(before: list[torch.Tensor]) -> float:
    """Return the bytes of the tensors that have come since."""
    old = {tensor.untyped_storage().data_ptr() for tensor in before}
    storages = [tensor.untyped_storage() for tensor in tensors()]
    new = {s.data_ptr(): s.nbytes() for s in storages if s.data_ptr() not in old}
    return float(sum(new.values()))


def plan_of(found: dict[str, float], case: tuple[Any, Any, Any]) -> Plan:
    stage, precision, mode = case
    parameters = int(found["parameters"])
    return Plan(
        parameters, 2, stage, mode, precision=precision, overlap=False, bucket=BUCKET, live=LIVE
    )


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, str, str], Any]:
    folder = tmp_path_factory.mktemp("deepspeed")
    write_zero(folder)
    found = run_ranks(count, 2, str(folder))[0]
    return dict(zip(CASES, found, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_memory_and_traffic_are_those_of_a_running_engine(
    counted: dict[tuple[int, str, str], Any], case: tuple[Any, Any, Any]
) -> None:
    found = counted[case]
    plan = plan_of(found, case)
    planned = plan.model_bytes() + plan.gradient_bytes()
    if case[0] == 3:
        planned += plan.working_bytes()  # elsewhere they are gone after the backward pass
    assert found["held"] == pytest.approx(planned, rel=0.04)  # norms' moments are not 8 bit
    assert found["sent"] == pytest.approx(plan.sent_bytes(), rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_the_backward_passes_peak_where_planned(
    counted: dict[tuple[int, str, str], Any], case: tuple[Any, Any, Any]
) -> None:
    """To less than half a gradient, which leaves room for the small activations."""
    found = counted[case]
    plan = plan_of(found, case)
    row = 4 * plan.parameters / plan.ranks
    if plan.stage == 3:
        planned = plan.row_bytes()  # the rest is there before
    else:
        passes = plan.arriving_bytes() + plan.working_bytes()
        planned = plan.gradient_bytes() + max(
            passes, plan.step_bytes() if plan.row_bytes() else 0.0
        )
    # A sketch's scratch is bounded, but as large as a gradient here.
    scratch = row if plan.mode == "sketch" else row / 2
    assert found["peak"] == pytest.approx(planned + row / 4, abs=scratch)


def test_the_page_has_the_figures_that_its_command_prints() -> None:
    page = " ".join((ROOT / "docs" / "planning.md").read_text(encoding="utf-8").split())
    assert " ".join(tables().split()) in page
    offload = Plan(SDXL_PARAMETERS, 1, 2, "sketch", optimizer="AdamW", offload_optimizer=True)
    for size, place in (
        (FROZEN_BYTES, "for the frozen text encoders and the VAE"),
        (4 * 3 * SDXL_PARAMETERS, "in float32"),
        (offload.device_bytes(), "on the GPU"),
        (offload.host_bytes(), "on the host"),
    ):
        assert f" {size / GIB:.1f} GiB {place}" in page


def test_the_page_has_the_costs_of_data_that_its_command_prints() -> None:
    page = (ROOT / "docs" / "planning.md").read_text(encoding="utf-8")
    assert table([DataCosts(images) for images in (1e6, 1e7, 1e9)]) in page


def test_a_cached_image_takes_what_its_entries_take(tmp_path: Path) -> None:
    """But for their headers, at SDXL's sizes; by default."""
    side = 1024 // 8
    latents = Posterior(torch.zeros(1, 4, side, side), torch.ones(1, 4, side, side))
    text = Prompt(
        torch.zeros(1, 77, 2048, dtype=torch.bfloat16), torch.zeros(1, 1280, dtype=torch.bfloat16)
    )
    dtype = DTYPES[Data(root="x").cache_precision]
    latents_content, text_content = encode(as_stored(latents, dtype)), encode(text)
    assert len(latents_content) == pytest.approx(DataCosts.latent_bytes(), abs=512)
    assert len(text_content) == pytest.approx(DataCosts.text_bytes(), abs=512)
    write_shards(tmp_path, [(b"1" * 20, latents_content), (b"2" * 20, text_content)])
    index = read_index(tmp_path)
    of_digests = 2 * BYTES  # the image's, and its name's, by which it is found
    kept = index.keys.nbytes + index.places.nbytes + of_digests
    assert DataCosts(1).cache_memory() == kept


def test_the_benchmark_of_the_cache_tells_both_layouts(capsys: pytest.CaptureFixture[str]) -> None:
    cache_benchmark.main(["--entries", "10000", "--read", "3"])
    opened, *read = capsys.readouterr().out.splitlines()
    assert opened.startswith("10,000 entries in 3 shards: 0 MB, opened in ")
    assert [line.partition(":")[0] for line in read] == ["shards", "a file each"]


def test_costs_grow_with_the_images_and_checkpoints_do_not() -> None:
    few, many = DataCosts(1e3), DataCosts(1e6)
    for cost in ("cache_bytes", "check_s", "start_s"):
        assert getattr(many, cost)() == pytest.approx(1000 * getattr(few, cost)(), rel=1e-12)
    assert few.checkpoint_bytes() == many.checkpoint_bytes()
    # 2 bytes of weights, 4 of master weights and 2 of moments, with their scales.
    assert few.checkpoint_bytes() / SDXL_PARAMETERS == pytest.approx(8, abs=0.1)
    assert DataCosts(1e3, ranks=1).checkpoint_bytes() == pytest.approx(few.checkpoint_bytes())


def test_the_sizes_are_those_of_the_true_sdxl() -> None:
    layout = PipelineFolder.base()
    counts = {name: sum(p.numel() for p in layout.empty(name).parameters()) for name in COMPONENTS}
    assert counts["unet"] == SDXL_PARAMETERS
    texts = counts["text_encoder"] + counts["text_encoder_2"]
    assert 2 * texts + 4 * counts["vae"] == FROZEN_BYTES


@pytest.mark.parametrize(
    ("mode", "every", "micro_batches", "plain", "recomputed", "in_turn"),
    [
        ("global", 1, 1, 3, 4, 4),
        ("global", 5, 1, 3, 4, 4),
        ("exact", 1, 1, 7, 8, 10),
        ("exact", 1, 4, 28, 32, 40),
        ("amortized", 5, 1, 3.8, 4.8, 5.2),
        ("sketch", 1, 1, 9, 11, 11),
        ("sketch", 1, 2, 20, 24, 24),
        ("sketch", 10, 1, 3.6, 4.7, 4.7),
        ("sketch", 10, 2, 7.4, 9.6, 9.6),
    ],
)
def test_compute_counts_a_block_as_often_as_it_is_computed(
    mode: Any, every: int, micro_batches: int, plain: float, recomputed: float, in_turn: float
) -> None:
    def forwards(**settings: Any) -> float:
        plan = Plan(1, 1, mode=mode, micro_batches=micro_batches, **settings)
        return plan.forwards_of_compute(every)

    assert forwards(stage=2) == pytest.approx(plain)
    assert forwards(stage=2, recomputes=True) == pytest.approx(recomputed)
    # With offload, DeepSpeed reduces.
    offload = forwards(stage=2, recomputes=True, offload_optimizer=True)
    assert offload == pytest.approx(in_turn)


def test_exact_holds_the_shards_of_all_objectives_and_sketch_holds_none() -> None:
    plain, exact, sketch = (
        Plan(SDXL_PARAMETERS, 8, 2, mode).gradient_bytes() for mode in ("global", "exact", "sketch")
    )
    assert exact == 3 * plain
    assert sketch == plain
