"""The study: what is compared, how it is measured, and that a run of it is kept or made again."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from scipy import ndimage

from fairhuman.common.errors import ConfigError, OutputError, UserError
from fairhuman.common.lock import FolderLock
from fairhuman.data.records import Reading, load_records
from fairhuman.demo.drawn import draw_people
from fairhuman.evaluation.study import judge as judging
from fairhuman.evaluation.study.cases import cases_table, studies
from fairhuman.evaluation.study.command import columns_of, study
from fairhuman.evaluation.study.drawn_case import TRAINED
from fairhuman.evaluation.study.line import distance
from fairhuman.evaluation.study.outcome import Outcome, Result, Spread, direction, gram_of
from fairhuman.evaluation.study.plan import load_study
from fairhuman.evaluation.study.run_trial import pictures_at, sources
from fairhuman.evaluation.study.trials import make_trials
from fairhuman.fairness.mpd import Status, solve_mpd
from fairhuman.fairness.published import PublishedStep
from fairhuman.fairness.rules import RULES
from fairhuman.fairness.solve import cosine
from fairhuman.kernels.bench.published import published_weights
from fairhuman.training.validation import hold_out

ROOT = Path(__file__).resolve().parents[2]
TREE: dict[str, Any] = {
    "train": str(ROOT / "configs" / "demo.yaml"),
    "set": [
        "optimizer.schedule=constant",
        "optimizer.warmup_steps=0",
        "train.batch_size=2",
        "data.validation=8",
        f"deepspeed={ROOT / 'configs' / 'deepspeed' / 'zero2.json'}",
    ],
    "steps": 4,
    "measure_every": 1,
    "seeds": [3],
    "drawn": {"size": 64, "count": 32, "vae_steps": 2, "unet_steps": 2, "judge_steps": 2},
    "pictures": {"count": 3, "steps": 2},
    "arms": {
        "sum": {"set": ["fairness.mode=sum"]},
        "exact": {"set": ["fairness.mode=exact"]},
        "published": {"set": ["fairness.mode=exact"], "step": "published"},
        "simplex": {"set": ["fairness.mode=exact", "fairness.normalize=simplex"], "variant": True},
    },
}


def plan(folder: Path, **changes: Any) -> Any:
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({"output_dir": str(folder / "out")} | TREE | changes))
    return load_study(path)


def matrices(count: int, size: float) -> torch.Tensor:
    rng = torch.Generator().manual_seed(5)
    G = size * torch.randn(count, 3, 20, generator=rng, dtype=torch.float64) / math.sqrt(20)
    G *= torch.tensor([1.0, 0.2, 0.05])[:, None]  # as of a whole image, faces and hands
    return G @ G.mT


def test_a_study_that_another_process_runs_is_refused(tmp_path: Path) -> None:
    with FolderLock(tmp_path / "out", "study"):
        with pytest.raises(OutputError, match=r"out: is in use by process \d+ on"):
            study(plan(tmp_path))
        assert [path.name for path in (tmp_path / "out").iterdir()] == [".fairhuman.lock"]


def test_the_published_solver_agrees_with_ours_where_gradients_are_of_size_one() -> None:
    for A in matrices(20, 1.0):
        assert cosine(A, published_weights(A), solve_mpd(A, 2.0).weights) > 1 - 1e-6


def test_the_published_solver_stops_before_it_has_solved_where_gradients_are_small() -> None:
    for A in matrices(20, 1e-3):
        published, own = published_weights(A), solve_mpd(A, 2.0)
        target = published**-0.5
        assert float(((A @ published - target).abs() / target).max()) > 0.1
        assert cosine(A, published, own.weights) < 0.99
        assert float(own.residual) < 1e-14


@pytest.mark.parametrize("size", [1.0, 1e-3])
@pytest.mark.parametrize("loss_scale", [1.0, 65536.0])
def test_the_published_step_is_that_of_the_published_script(size: float, loss_scale: float) -> None:
    """Gradient by gradient: scaled, solved, combined, unscaled, times 3, clipped."""
    rng = torch.Generator().manual_seed(2)
    for _ in range(5):
        G = size * torch.randn(3, 40, generator=rng, dtype=torch.float64)
        scaled = loss_scale * G
        w = published_weights(scaled @ scaled.mT)
        update = torch.nn.Parameter(torch.zeros(40, dtype=torch.float64))
        update.grad = 3 * (w @ scaled) / loss_scale
        torch.nn.utils.clip_grad_norm_([update], 0.5)
        found = PublishedStep(max_norm=0.5, loss_scale=loss_scale)(G @ G.mT)
        torch.testing.assert_close(found.scale * found.weights @ G, update.grad)
        assert float(found.scale * found.norm) == pytest.approx(float(update.grad.norm()))


def test_the_published_step_shrinks_with_the_loss_scale() -> None:
    """By S^(-4/3), in the direction that is right, where its solver has solved."""
    scale = 2.0**12
    for A in matrices(5, 1.0):
        found = PublishedStep(max_norm=None, loss_scale=scale)(A)
        exact = solve_mpd(A)
        assert cosine(A, found.weights, exact.weights) > 1 - 1e-6
        length = float(found.scale * found.norm)
        assert length == pytest.approx(3 * scale ** (-4 / 3) * float(exact.norm), rel=1e-2)


def test_a_matrix_that_is_not_finite_gets_no_weights() -> None:
    A = matrices(1, 1.0)[0]
    A[1, 1] = math.nan
    found = PublishedStep(loss_scale=1.0)(A)
    assert int(found.status) == Status.NONFINITE
    assert not found.weights.any()


def test_a_steps_gradients_are_known_by_its_record() -> None:
    A = matrices(1, 1e-3)[0]
    names, norms = ["global", "face", "hand"], A.diagonal().sqrt()
    record: dict[str, float | None] = {}
    record |= {f"grad_norm/{name}": float(norm) for name, norm in zip(names, norms, strict=True)}
    for i, j in ((0, 1), (0, 2), (1, 2)):
        record[f"cosine/{names[i]}_{names[j]}"] = float(A[i, j] / norms[i] / norms[j])
    gram, here = gram_of(record, names)
    assert here == names
    torch.testing.assert_close(gram, A)
    weights = (2.5 * solve_mpd(A).weights).tolist()
    record |= {f"weight/{name}": w for name, w in zip(names, weights, strict=True)}
    assert direction(record, names) == pytest.approx(1.0)
    # An absent objective leaves the problem of the others.
    record |= {"grad_norm/face": None, "cosine/global_face": None, "cosine/face_hand": None}
    gram, here = gram_of(record, names)
    assert here == ["global", "hand"]
    torch.testing.assert_close(gram, A[[0, 2]][:, [0, 2]])
    # Where nothing was measured there is no direction.
    assert direction({"grad_norm/global": None}, names) is None


def test_arms_get_the_references_compute(tmp_path: Path) -> None:
    made = make_trials(plan(tmp_path, seeds=[3, 9]))
    marks = {trial.arm: trial.marks for trial in made}
    assert {name: (m.steps, m.compute) for name, m in marks.items()} == {
        "sum": (4, 9),  # 4 x 7/3 = 9.3
        "exact": (4, 4),
        "published": (4, 4),
        "simplex": (4, 4),
    }
    assert [trial.seed for trial in made] == [3] * 4 + [9] * 4
    assert all(t.config.train.seed == t.seed for t in made)
    assert all(t.config.train.steps == max(t.marks.steps, t.marks.compute) for t in made)
    assert all(t.compared == ("steps", "compute") for t in made)
    assert len({trial.folder for trial in made}) == 8


def test_where_the_rate_decays_each_comparison_has_a_run_with_its_whole_schedule(
    tmp_path: Path,
) -> None:
    arms = TREE["arms"] | {"sum": {"set": ["fairness.mode=sum", "optimizer.schedule=cosine"]}}
    made = make_trials(plan(tmp_path, arms=arms, seeds=[3, 9]))
    lengths = {
        (t.arm, t.seed, t.compared): t.config.train.steps for t in made if t.arm in ("sum", "exact")
    }
    assert lengths == {
        ("sum", 3, ("steps",)): 4,
        ("sum", 3, ("compute",)): 9,
        ("exact", 3, ("steps", "compute")): 4,
        ("sum", 9, ("steps",)): 4,
        ("sum", 9, ("compute",)): 9,
        ("exact", 9, ("steps", "compute")): 4,
    }
    assert len({trial.folder for trial in made}) == len(made)
    short = make_trials(plan(tmp_path, arms=arms, same_compute=False))
    assert all(t.compared == ("steps",) and t.config.train.steps == 4 for t in short)


def outcome(changes: dict[str, list[tuple[float, float]]]) -> Outcome:
    """Of arms with (whole, hands) by seed; `a`, `b` and `c` have fixed weights."""
    return Outcome(
        names=["global", "hand"],
        marks={},
        forwards={},
        results={
            arm: [
                Result(arm, seed, {"steps": {"global": whole, "hand": hand}}, 1.0, None, None, 0)
                for seed, (whole, hand) in enumerate(pairs)
            ]
            for arm, pairs in changes.items()
        },
        variants=[],
        reference="a",
        compared=["steps"],
        series={"fixed": ["a", "b", "c"]},
        line="fixed",
    )


def test_the_distance_from_the_line_is_the_wholes_at_the_same_gain_seed_by_seed() -> None:
    found = outcome(
        {
            "a": [(-4.0, -10.0), (-5.0, -8.0), (-4.0, -9.0)],
            "c": [(0.0, -30.0), (0.0, -28.0), (0.0, -29.0)],  # in any order
            "b": [(-3.0, -20.0), (-4.0, -18.0), (-3.0, -19.0)],
            "on it": [(-3.5, -15.0), (-4.5, -13.0), (-3.5, -14.0)],
            "better": [(-2.5, -25.0), (-2.0, -28.0), (-4.0, -24.0)],
            "beyond": [(9.0, -31.0), (9.0, -30.0), (-1.0, -29.0)],
            "far": [(9.0, -99.0), (9.0, -99.0), (9.0, -99.0)],
        }
    )
    assert distance(found, "on it", "hand") == pytest.approx((0.0, 0.0, 3))
    # -2.5 - -1.5, -2 - 0, -4 - -1.5
    values = [-1.0, -2.0, -2.5]
    error = np.std(values, ddof=1) / 3**0.5
    assert distance(found, "better", "hand") == pytest.approx((np.mean(values), error, 3))
    assert distance(found, "beyond", "hand") == (-1.0, None, 1)
    assert distance(found, "far", "hand") == (None, None, 0)


@pytest.mark.parametrize("name", ["study", "study_rules"])
def test_the_shipped_studies_can_be_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    shipped = load_study(Path(f"configs/{name}.yaml"))
    made = make_trials(shipped)
    assert len(made) == len(shipped.arms) * len(shipped.seeds) >= 20
    # What an arm is called is what it is.
    for trial in made:
        fairness, scale = trial.config.fairness, trial.config.objectives.scale
        words = trial.arm.replace(",", "").split()
        told = dict(zip(words[::2], words[1::2], strict=False))
        factor = float(told.get("fixed", told.get("scale", 25 if "published" in words else 1)))
        assert all(scale.get(name, 1.0) == factor for name in ("face", "hand"))
        assert fairness.keep == float(told.get("keep", 0))
        modes = {"plain": "global", "fixed": "sum", "inverse": "inverse_loss"}
        modes |= {"measured": "amortized", "sketched": "sketch"}
        modes |= {"DWA": "dwa", "uncertainty": "uncertainty"}
        assert fairness.mode == next((modes[word] for word in words if word in modes), "exact")
        if "every" in words:
            assert fairness.every == int(words[-1])
        named = trial.arm.lower().replace("-", "_").replace(" ", "_")
        assert fairness.rule == (named if named in RULES else "mpd")


@pytest.mark.parametrize("name", ["study", "study_cases", "study_pictures", "study_rules"])
def test_the_arms_of_a_shipped_study_are_set_to_steps_of_one_length(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else an arm would have another learning rate than the one that it is compared with.

    The published step ignores `normalize`: its length is that of the paper's scripts.
    """
    monkeypatch.chdir(ROOT)
    shipped = load_study(Path(f"configs/{name}.yaml"))
    for one in [*studies(shipped).values()] or [shipped]:
        for trial in make_trials(one):
            solves = trial.config.fairness.solves
            assert trial.config.fairness.normalize == "ball"
            clipped = 0.001 if trial.config.model.method == "lora" else 0.01  # shorter gradients
            assert trial.config.train.max_grad_norm == (1.0 if solves else clipped)


@pytest.mark.parametrize("other", ["study_front", "study_rules"])
def test_the_other_studies_start_where_the_study_does(
    other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    shipped, base = (load_study(Path(f"configs/{name}.yaml")) for name in (other, "study"))
    assert shipped.drawn
    assert shipped.drawn.model == f"{base.output_dir}/tiny-sdxl"
    assert (shipped.set, shipped.steps) == (base.set, base.steps)
    for name, arm in shipped.arms.items():
        if name in base.arms:
            assert (arm.set, arm.step) == (base.arms[name].set, base.arms[name].step)
            assert shipped.line != arm.series or arm.series == base.arms[name].series


def test_the_shipped_cases_can_be_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    shipped = load_study(Path("configs/study_cases.yaml"))
    base = load_study(Path("configs/study.yaml"))
    assert shipped.drawn
    assert base.drawn
    assert shipped.drawn.model == f"{base.output_dir}/tiny-sdxl"
    # Each differs from the study in one thing, and its arms are the study's.
    assert shipped.set == base.set
    assert {name: (arm.set, arm.step) for name, arm in shipped.arms.items()} == {
        name: (base.arms[name].set, base.arms[name].step) for name in shipped.arms
    }
    assert all(len(case.model_fields_set) <= 1 for case in shipped.cases.values())
    found = studies(shipped)
    assert list(found) == list(shipped.cases)
    folders = set()
    for name, one in found.items():
        made = make_trials(one)
        folders |= {trial.folder for trial in made}
        scales = {trial.arm: trial.config.objectives.scale for trial in made}
        face = 10.0 if name == "face loss x 10" else 1.0
        assert scales["fixed 5"] == {"face": 5 * face, "hand": 5}
        assert scales["plain"].get("face", 1.0) == scales["keep 0.85"].get("face", 1.0) == face
        batch = int(name.removeprefix("batch ")) if name.startswith("batch") else 8
        assert {trial.config.train.batch_size for trial in made} == {batch}
    assert len(folders) == len(found) * len(shipped.arms) * len(shipped.seeds)
    drawn = {name: (one.drawn.zoom, one.drawn.hands) for name, one in found.items() if one.drawn}
    assert drawn["half size"] == (0.5, None)
    assert drawn["few hands"] == (1.0, 0.1)


def test_a_case_without_its_model_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    drawn = {"size": 64, "count": 32, "model": str(tmp_path / "none")}
    cases = {"as it was": {}, "large": {"zoom": 2}}
    with pytest.raises(ConfigError, match="there is no such model; run the study"):
        study(plan(tmp_path, drawn=drawn, cases=cases))
    assert not (tmp_path / "out").exists()


def test_the_table_of_cases_pairs_the_seeds_of_each(tmp_path: Path) -> None:
    usual = outcome({"a": [(-4.0, -10.0), (-5.0, -8.0)], "b": [(-3.0, -20.0), (-2.0, -18.0)]})
    large = outcome({"a": [(-1.0, -9.0), (-1.0, -9.0)], "b": [(-2.0, -30.0), (-2.0, -30.0)]})
    table = cases_table({"usual": usual, "large": large})
    assert [row[0] for row in table.rows] == ["usual: a", "usual: b", "large: a", "large: b"]
    assert table.rows[1] == ["usual: b", "-2.50 ± 0.71", "-19.00 ± 1.41", "+2.00 ± 1.41"]
    assert table.rows[3][-1] == "-1.00 ± 0.00"


def test_what_an_arm_sets_wins_over_what_all_share(tmp_path: Path) -> None:
    arms = TREE["arms"] | {"slow": {"set": ["fairness.mode=sum", "optimizer.lr=1e-6"]}}
    made = make_trials(plan(tmp_path, arms=arms, set=[*TREE["set"], "optimizer.lr=2e-4"]))
    assert {trial.arm: trial.config.optimizer.lr for trial in made}["slow"] == 1e-6
    assert {trial.arm: trial.config.optimizer.lr for trial in made}["sum"] == 2e-4


def test_the_outcome_of_other_settings_is_not_taken(tmp_path: Path) -> None:
    first = make_trials(plan(tmp_path))[0]
    again, other = (
        make_trials(plan(tmp_path, set=[*TREE["set"], *more]))[0]
        for more in ([], ["optimizer.lr=1e-6"])
    )
    assert again.digest({}) == first.digest({}) != other.digest({})
    assert first.digest({"prompts": "a"}) != first.digest({"prompts": "b"})
    assert dataclasses.replace(first, published=1.0).digest({}) != first.digest({})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"reference": "mpd"}, "reference = 'mpd': is none of the arms"),
        ({"measure_every": 3}, "must be a multiple of measure_every"),
        ({"drawn": None}, "pictures.prompts: is missing"),
        ({"seeds": [1, 1]}, "a seed is named twice"),
        ({"jobs": 0}, "jobs = 0"),
        (
            {"cases": {"large": {"zoom": 2}}},
            "drawn.model: is missing; the cases start from one model",
        ),
        (
            {"drawn": {"model": "m", "cell": 4}},
            "drawn.cell: is of a model to be fitted, and drawn.model names one; remove either",
        ),
        ({"line": "fixed"}, "line = 'fixed': needs two or more arms with `series: fixed`"),
        ({"arm": {}}, "arm: unknown key (did you mean arms?)"),
    ],
)
def test_a_mistake_in_the_study_is_named(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        plan(tmp_path, **changes)
    assert words in str(caught.value)


def test_a_training_config_given_as_a_study_is_told_in_one_line() -> None:
    with pytest.raises(ConfigError, match="is no study") as caught:
        load_study(ROOT / "configs" / "demo.yaml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "arm", "shared", "words"),
    [
        ("sum", {"set": ["fairness.mod=sum"]}, [], "did you mean mode?"),
        ("sum", {"set": ["data.validation=0", "train.validate_every=0"]}, [], "data.validation"),
        ("published", {"step": "published", "set": ["fairness.mode=sum"]}, [], "mode=exact"),
    ],
)
def test_a_mistake_in_an_arm_is_told_before_anything_is_made(
    tmp_path: Path, name: str, arm: dict[str, Any], shared: list[str], words: str
) -> None:
    with pytest.raises(ConfigError, match=f"^arm '{name}': ") as caught:
        study(plan(tmp_path, arms=TREE["arms"] | {name: arm}))
    assert words in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_regions_are_those_of_scipy() -> None:
    rng = np.random.default_rng(1)
    for _ in range(5):
        smooth = ndimage.gaussian_filter(rng.standard_normal((40, 52)), 2.0)
        probability = torch.from_numpy((smooth > 0.05).astype(np.float32))
        labels, count = ndimage.label(probability.numpy(), structure=np.ones((3, 3)))
        areas = ndimage.sum_labels(np.ones_like(labels), labels, range(1, count + 1))
        assert count > 3
        assert judging._regions(probability, 12) == int((areas >= 12).sum())


@pytest.mark.slow
def test_the_judge_finds_what_was_drawn_and_nothing_in_an_empty_scene(tmp_path: Path) -> None:
    # A short fit: the study's is eight times as long, on drawings twice as large.
    judge = judging.make_judge(tmp_path / "judge.safetensors", 64, 100)
    samples = judging.drawn(77, 48, 64)
    told = [judging.truth(sample) for sample in samples]
    found = judging.look(judge, [sample.image for sample in samples])
    pairs = list(zip(told, found, strict=True))
    for part, least in (("faces", 0.9), ("hands", 0.7)):
        hit = sum(min(getattr(a, part), getattr(b, part)) for a, b in pairs)
        assert hit >= least * sum(getattr(a, part) for a in told), part
    blank = samples[0].image.copy()
    blank.paste((120, 160, 200), (0, 0, *blank.size))
    assert judging.look(judge, [blank]) == [judging.Found(0, 0, 0)]
    # It is kept: the same judge without another fit.
    again = judging.make_judge(tmp_path / "judge.safetensors", 64, 100)
    assert judging.look(again, [samples[0].image]) == found[:1]


@pytest.mark.slow
def test_a_study_tells_what_its_runs_have_measured_and_keeps_them(tmp_path: Path) -> None:
    said: list[str] = []
    wanted = plan(tmp_path, jobs=2)
    made = study(wanted, said.append)
    assert {path.name for path in made} == {
        "study.md",
        "study.html",
        "results.json",
        "pictures.png",
        "tradeoff-face.svg",
        "tradeoff-hand.svg",
    }
    out = tmp_path / "out"
    tree = json.loads((out / "results.json").read_text())
    starts: list[dict[str, Any]] = []
    for arm, last in (("sum", 9), ("exact", 4), ("published", 4), ("simplex", 4)):
        folder = out / "runs" / arm / "seed-3"
        records = {
            record["step"]: record
            for record in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        }
        assert max(records) == last
        start = records[0]
        starts.append({key: value for key, value in start.items() if key.startswith("val/")})
        [result] = tree["results"][arm]
        for name in ("global", "face", "hand"):
            key = f"val/loss/{name}"
            change = 100 * (records[last][key] / start[key] - 1)
            assert result["changes"]["compute"][name] == pytest.approx(change, abs=1e-9)
        norms = [records[step].get("grad_norm/update") for step in sorted(records)]
        lengths = np.array([norm for norm in norms if norm is not None])
        if last == 9:
            assert result["early"] == pytest.approx(lengths[:1].mean() / lengths[1:].mean())
        else:  # too few steps to tell
            assert result["early"] is None
        assert not (folder / "final").exists()
        assert len(list((folder / "pictures").glob("0*.png"))) == 3
    # All arms start alike, and the exact step's own direction is the exact one.
    assert all(start == starts[0] for start in starts)
    assert tree["results"]["exact"][0]["cosine"] == pytest.approx(1.0, abs=1e-6)
    assert tree["results"]["sum"][0]["cosine"] is None
    assert tree["results"]["published"][0]["residual"] > 1e-11 > tree["scales"][0]["own"]
    page = (out / "study.html").read_text()
    assert "Which choices matter" in page
    assert "length at first" in page
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")

    # Again: nothing is trained. After a run was cut short: that one alone.
    before = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/*/metrics.jsonl")}
    study(wanted, said.append)
    assert "4 of 4 runs are there already" in said
    stamp = out / "runs" / "sum" / "seed-3" / "trial.json"
    stamp.write_text(json.dumps(json.loads(stamp.read_text()) | {"done": False}))
    study(wanted, said.append)
    after = {path: path.stat().st_mtime_ns for path in before}
    assert {p.parts[-3] for p in before if before[p] != after[p]} == {"sum"}
    assert (
        json.loads((out / "results.json").read_text())["results"]["exact"]
        == (tree["results"]["exact"])
    )

    # Other settings: what is there is not thrown away for them.
    stamps = {path: path.read_bytes() for path in out.glob("runs/*/*/trial.json")}
    with pytest.raises(UserError, match="a run of other settings \\(4 in total\\)"):
        study(plan(tmp_path, jobs=2, set=[*TREE["set"], "optimizer.lr=1e-6"]), said.append)
    assert {path: path.read_bytes() for path in stamps} == stamps

    # A folder that is no run of the study is left alone, and said to be in the way.
    shutil.rmtree(stamp.parent)
    stamp.parent.mkdir()
    (stamp.parent / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match="is no run of a study"):
        study(wanted, said.append)
    assert (stamp.parent / "mine.txt").read_text() == "keep"


@pytest.mark.nightly
def test_a_run_that_holds_out_too_little_is_named_before_it_trains(tmp_path: Path) -> None:
    draw_people(tmp_path / "people", 32, 64, TRAINED)
    records, _ = load_records(tmp_path / "people", Reading(("face", "hand")))
    seed = next(
        seed
        for seed in range(100)
        if not records[hold_out([r.id for r in records], 1, seed).argmax()].regions["hand"].boxes
    )
    arms = {name: {"set": ["fairness.mode=sum"]} for name in ("exact", "sum")}
    shared = [*TREE["set"], "data.validation=1"]
    with pytest.raises(UserError) as caught:
        study(
            plan(tmp_path, arms=arms, set=shared, seeds=[seed], pictures={"count": 0}),
            lambda line: None,
        )
    for arm in arms:
        log = tmp_path / "out" / "runs" / arm / f"seed-{seed}" / "log.txt"
        assert f"{arm}, seed {seed}: ended with exit code 2; see {log}" in str(caught.value)
    assert "data.validation = 1: none of the images" in str(caught.value)
    assert "shows a hand" in str(caught.value)
    for path in tmp_path.glob("out/runs/*/*/metrics.jsonl"):
        assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [0]
    # With the advice followed it runs, though its settings are others.
    mended = plan(tmp_path, arms=arms, seeds=[seed], steps=1, pictures={"count": 0})
    assert (tmp_path / "out" / "study.md") in study(mended, lambda line: None)


def test_a_spread_is_the_seeds_deviation() -> None:
    assert Spread.of([1.0, 2.0, 3.0]).show() == "+2.00 ± 1.00"
    assert Spread.of([-1.5]).show(".1f") == "-1.5"


def test_a_lora_is_drawn_at_each_strength_and_shown_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    shipped = load_study(Path("configs/study_pictures.yaml"), [f"output_dir={tmp_path}"])
    scales = shipped.pictures.lora_scales
    assert scales == [0.5, 1.5]
    trials = {trial.arm: trial for trial in make_trials(shipped, [])}
    plain, lora = (trials[arm].config for arm in ("plain", "LoRA, plain"))
    assert [one.lora for one in sources(plain, scales)] == [None]
    drawn = sources(lora, scales)
    assert [one.lora_scale for one in drawn] == [1, 0.5, 1.5]
    for source in drawn:
        assert source.model == lora.model.pretrained
        assert source.lora == Path(lora.train.output_dir) / "final"
        folder = Path(lora.train.output_dir) / pictures_at(source.lora_scale)
        folder.mkdir(parents=True)
        Image.new("RGB", (8, 8), (int(source.lora_scale * 100),) * 3).save(folder / "0000.png")
    shown = list(columns_of(trials["LoRA, plain"], scales))
    assert [name for name, _ in shown] == [f"LoRA, plain x {s}" for s in ("0.5", "1", "1.5")]
    assert [np.asarray(pictures[0]).max() for _, pictures in shown] == [50, 100, 150]
    assert [name for name, _ in columns_of(trials["plain"], scales)] == ["plain"]
