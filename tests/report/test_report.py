"""`fairhuman report` and the trackers: their numbers are those of metrics.jsonl."""

from __future__ import annotations

import base64
import io
import json
import math
import random
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from fairhuman.cli import main
from fairhuman.common.errors import ConfigError
from fairhuman.common.redact import redacted_overrides
from fairhuman.config import Config
from fairhuman.report import write_comparison
from fairhuman.report.chart import Data, Line, lines
from fairhuman.report.compare import differences
from fairhuman.report.history import read_run
from fairhuman.report.parts import page, section, table, tiles
from fairhuman.report.run_page import best_step
from fairhuman.report.scatter import Curve, Point, scatter
from fairhuman.report.series import MOST, extremes, smooth, thinned
from fairhuman.training.environment import commit
from fairhuman.training.metrics_log import Log
from fairhuman.training.step_timer import StepTimer
from fairhuman.training.trackers import check_tracking, trackers

NAMES = ("global", "face", "hand")
EVIL = '</script><img src=x onerror="alert(1)">'


def record(step: int, rng: random.Random) -> dict[str, Any]:
    """A step's numbers; the hand is absent from each third, and each fifth is validated."""
    absent = step % 3 == 0
    found: dict[str, Any] = {"step": step, "epoch": step / 10, "lr": 1e-4}
    for name in NAMES:
        gone = absent and name == "hand"
        found[f"loss/{name}"] = None if gone else rng.random()
        found[f"weight/{name}"] = 0.0 if gone else rng.uniform(1, 30)
        found[f"grad_norm/{name}"] = None if gone else rng.uniform(0.01, 1)
    found["grad_norm/update"] = 1.0
    for pair in ("global_face", "global_hand", "face_hand"):
        found[f"cosine/{pair}"] = None if absent and "hand" in pair else rng.uniform(-1, 1)
    shares = {name: found[f"weight/{name}"] * (found[f"grad_norm/{name}"] or 0) for name in NAMES}
    for name in NAMES:
        gone = absent and name == "hand"
        found[f"share/{name}"] = None if gone else shares[name] / sum(shares.values())
        found[f"progress/{name}"] = None if gone else rng.uniform(-1, 1)
    status = int(absent) + 16 * (step % 4 == 0)
    found |= {"solver/status": status, "solver/residual": 1e-16, "solver/iterations": 3}
    parts = ("data", "encode", "forward", "backward", "update", "other")
    found |= {f"time/{part}": rng.random() for part in parts}
    if step % 5 == 0:
        for name in NAMES:
            for key in (f"val/loss/{name}", *(f"val/loss/{name}/q{q}" for q in range(1, 5))):
                found[key] = rng.random()
    return found | {
        "skipped": step // 7,
        "samples_per_s": 3.0,
        "step_time_s": sum(found[f"time/{part}"] for part in parts),
        "memory_gib": 1.5,
    }


def settings(output: Path, **train: Any) -> Config:
    return Config.model_validate(
        {
            "model": {"pretrained": "/home/someone/sdxl"},
            "data": {"root": "/home/someone/people"},
            "train": {"output_dir": str(output), "steps": 20, **train},
            "deepspeed": {"zero_optimization": {"stage": 2}},
        }
    )


def make_run(output: Path, steps: int = 20, seed: int = 0, **train: Any) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    records = [record(step, rng) for step in range(1, steps + 1)]
    (output / "samples").mkdir(parents=True)
    (output / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    settings(output, **train).save(output / "config.yaml")
    (output / "environment.json").write_text(json.dumps({"ranks": 2, "packages": {"torch": "2"}}))
    for step in (10, 20):
        picture = Image.new("RGB", (1500, 1000), (step, 100, 200))
        picture.save(output / "samples" / f"step-{step:08d}.png")
    return records


class Page(HTMLParser):
    """What a browser makes of a page: its resources, tables, charts and data."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.text = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self._open = ""
        self.data: dict[str, Any] = {}
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open = "data" if dict(attrs).get("id") == "data" else tag
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open == "data":
            self.data = json.loads(data)
        if self._open in ("td", "th"):
            self.rows[-1][-1] += data

    def column(self, key: str, run: int = 0) -> list[tuple[int, float | None]]:
        grid, values = self.data["columns"][f"{run}:{key}"]
        return list(zip(self.data["grids"][grid], values, strict=True))

    def pictures(self) -> list[Image.Image]:
        sources = [attrs["src"] or "" for tag, attrs in self.tags if tag == "img"]
        return [
            Image.open(io.BytesIO(base64.b64decode(source.partition("base64,")[2])))
            for source in sources
        ]


def report(output: Path, *more: str) -> Page:
    assert main(["report", str(output), *more]) == 0
    return Page(output / "report.html")


def test_every_number_on_the_page_is_that_of_the_metrics(tmp_path: Path) -> None:
    records = make_run(tmp_path / "run")
    shown = report(tmp_path / "run")
    keys = {key for r in records for key in r} - {"step", "epoch", "solver/status"}
    assert {name.partition(":")[2] for name in shown.data["columns"]} == keys
    for key in keys:
        assert shown.column(key) == [(r["step"], r[key]) for r in records if key in r]
    for name, words in zip(NAMES, ("whole image", "faces", "hands"), strict=True):
        losses = [r[f"loss/{name}"] for r in records if r[f"loss/{name}"] is not None]
        row = next(row for row in shown.rows if row[0] == words)
        assert row[1:3] == [f"{losses[0]:.4g}", f"{losses[-1]:.4g}"]
        assert float(row[4]) == pytest.approx(min(losses), rel=1e-3)
    row = next(row for row in shown.rows if row[0] == "faces and hands")
    cosines = [c for r in records if (c := r["cosine/face_hand"]) is not None]
    assert row[1:3] == [str(len(cosines)), f"{sum(c < 0 for c in cosines) / len(cosines):.0%}"]
    assert ["steps skipped (7, 14)", "2"] in shown.rows
    assert ["an objective was absent", "6"] in shown.rows


def test_the_page_tells_which_way_the_steps_went_and_how_often_they_were_turned(
    tmp_path: Path,
) -> None:
    records = make_run(tmp_path / "run")
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    for keep in (0.0, 0.9):
        config["fairness"]["keep"] = keep
        (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(config))
        shown = report(tmp_path / "run")
        levels = [attrs for tag, attrs in shown.tags if attrs.get("class") == "level"]
        assert len(levels) == bool(keep)
    # Cosines from -1 to 1 take the height between the two ends of the axis.
    assert float(levels[0]["y1"] or 0) == pytest.approx(204 - 184 * 0.95, abs=0.1)
    assert "turned 5 of 20 steps towards the whole image" in shown.text
    against = sum((r["progress/hand"] or 0) < 0 for r in records)
    row = next(row for row in shown.rows if len(row) == 4 and row[0] == "hands")
    assert row[3] == str(against)


def test_the_headlines(tmp_path: Path) -> None:
    records = make_run(tmp_path / "run")
    text = re.sub(r"<[^>]+>", " ", report(tmp_path / "run").text)
    best = min((r for r in records if "val/loss/global" in r), key=lambda r: r["val/loss/global"])
    expected = f"best held-out step {best['step']} val/loss/global = {best['val/loss/global']:.4g}"
    assert expected in " ".join(text.split())
    assert "last loss, hands" in text


def test_the_page_says_how_far_what_is_held_out_has_changed_since_the_start(
    tmp_path: Path,
) -> None:
    records = make_run(tmp_path / "run")
    start: dict[str, Any] = {"step": 0, "epoch": 0.0}
    for at, row in enumerate((start, records[9], records[19])):
        for name, change in (("global", -1.0), ("face", -2.5), ("hand", -10.0)):
            row[f"val/loss/{name}"] = 0.5 * (1 + at * change / 100)
            row |= {f"val/change/{name}": at * change, f"val/change_se/{name}": at * 0.25}
    path = tmp_path / "run" / "metrics.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in (start, *records)))
    shown = report(tmp_path / "run")
    assert ["hands", "-20", "0.5", "20", "-20", "20"] in shown.rows
    assert shown.column("val/change/hand") == [(0, 0.0), (10, -10.0), (20, -20.0)]
    text = " ".join(re.sub(r"<[^>]+>", " ", shown.text).split())
    assert "held out, hands -20.00 ± 0.50 % since the start" in text
    assert "skipped steps 2 of 20" in text
    # The start is no step: it has no checkpoint, and no gradients.
    run = read_run(tmp_path / "run")
    assert run.names == list(NAMES)
    assert best_step(run) == ("val/loss/global", 5, records[4]["val/loss/global"])
    write_comparison([tmp_path / "run", tmp_path / "run"], tmp_path / "both.html")
    assert "Validation since the start" in (tmp_path / "both.html").read_text()


def test_runs_that_are_not_like_for_like_say_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def compared(*runs: Path) -> tuple[list[str], str]:
        write_comparison(runs, tmp_path / "both.html")
        page = " ".join(re.sub(r"<[^>]+>", " ", (tmp_path / "both.html").read_text()).split())
        return capsys.readouterr().out.splitlines(), page

    def changed(name: str, section: str, **keys: Any) -> Path:
        make_run(tmp_path / name)
        path = tmp_path / name / "config.yaml"
        tree = yaml.safe_load(path.read_text())
        tree[section] |= keys
        path.write_text(yaml.safe_dump(tree))
        return tmp_path / name

    one = changed("one", "train")
    warned, page = compared(one, changed("steps", "train", steps=99, seed=7))
    assert warned == []
    assert "Not like for like" not in page
    other = changed("other", "optimizer", lr=0.5)
    (line,), page = compared(one, other)
    assert re.fullmatch(r"warning: optimizer.lr differs \(\S+ in one, 0.5 in other\): .*", line)
    assert "Not like for like" in page
    assert line.removeprefix("warning: ") in page
    data = changed("data", "data", root="/a/people")
    (line,), page = compared(data, changed("moved", "data", root="/b/people"))
    assert "data.root differs (people in data, people in moved)" in line
    assert "/b/" not in page
    (line,), _ = compared(one, changed("batch", "train", batch_size=9))
    assert line.startswith("warning: the global batch differs (")
    assert line.endswith("18 in batch): a step shows other numbers of images")
    made = [changed(f"rank {r}", "model", method="lora", lora={"rank": r}) for r in (4, 8)]
    (line,), _ = compared(*made)
    assert "model.lora.rank differs (4 in rank 4, 8 in rank 8)" in line


def test_what_is_absent_is_a_gap_and_a_number_between_gaps_a_dot(tmp_path: Path) -> None:
    make_run(tmp_path / "run", steps=9)
    run = read_run(tmp_path / "run")
    line = Line("loss/hand", "hands", "c-hand")
    chart = lines(Data([run]), "hands", [line], smoothed=False)
    curve = re.findall(r'<path d="([^"]*)"', chart)
    assert [part.count("L") for part in curve[0].split("M")[1:]] == [1, 1, 1]  # 1 2 . 4 5 . 7 8 .
    for r in run.records:
        if r["step"] % 2:
            r["loss/face"] = None
    chart = lines(Data([run]), "faces", [Line("loss/face", "faces", "c-face")], smoothed=False)
    assert 'class="dots"' in chart
    assert '<path d="M' not in chart
    assert lines(Data([run]), "none", [Line("none", "none", "c-0")]) == ""


def test_a_curve_lies_where_its_numbers_are(tmp_path: Path) -> None:
    make_run(tmp_path / "run", steps=40)
    run = read_run(tmp_path / "run")
    chart = lines(
        Data([run]), "cosine", [Line("cosine/global_face", "x", "c-0")], bounds=(-1, 1),
        smoothed=False,
    )  # fmt: skip
    path = re.findall(r'<path d="M([^"]*)"', chart)[0]
    places = [tuple(map(float, place.split())) for place in path.split("L")]
    left, right = places[0][0], places[-1][0]
    for (x, y), step, value in zip(
        places, run.steps, run.column("cosine/global_face"), strict=True
    ):
        assert value is not None
        assert x == pytest.approx(left + (right - left) * (step - 1) / 39, abs=0.11)
        assert y == pytest.approx(112 - 92 * value, abs=0.11)  # 20 is the top, 204 the base


def test_the_moving_average_is_free_of_bias_and_long_curves_keep_their_peaks() -> None:
    assert smooth([3.0, None, 3.0, 3.0], 5) == pytest.approx([3.0, None, 3.0, 3.0])
    alpha, values = 2 / 6, [1.0, 4.0, 2.0]
    weights = [(1 - alpha) ** i for i in (2, 1, 0)]
    mean = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
    assert smooth([*values], 5)[-1] == pytest.approx(mean)
    rng = random.Random(0)
    long: list[float | None] = [rng.random() if i % 5 == 0 else None for i in range(7 * MOST)]
    long[3 * MOST // 5 * 5] = 99.0
    for kept in (extremes(long), thinned(long)):
        assert len(kept) <= MOST
        assert kept == sorted(set(kept))
        assert all(long[i] is not None for i in kept)  # a stretch with a number is no gap
    assert max(v for i in extremes(long) if (v := long[i]) is not None) == 99.0
    gap: list[float | None] = [None if 2000 <= i < 4000 else 1.0 for i in range(7 * MOST)]
    assert any(gap[i] is None for i in thinned(gap))
    assert thinned([1.0, None]) == [0, 1]


def test_a_page_needs_nothing_else_and_captions_cannot_break_it(tmp_path: Path) -> None:
    make_run(tmp_path / EVIL.replace("/", "_"), sample_prompts=[EVIL, "a <b>boy</b> & a girl"])
    shown = report(tmp_path / EVIL.replace("/", "_"))
    assert [tag for tag, _ in shown.tags].count("script") == 2
    for tag, attrs in shown.tags:
        assert not any(name.startswith("on") for name in attrs), tag
        assert tag not in ("link", "iframe", "object", "base")
        for name in ("src", "href", "srcset", "action"):
            assert (attrs.get(name) or "data:image/jpeg").startswith("data:image/jpeg;base64,") or (
                name not in attrs
            )
    assert "http" not in re.sub(r"base64,[^\"]*", "", shown.text)
    assert "url(" not in shown.text
    assert "@import" not in shown.text
    assert "a &lt;b&gt;boy&lt;/b&gt; &amp; a girl" in shown.text
    charts = [attrs for tag, attrs in shown.tags if tag == "svg"]
    assert len(charts) > 10
    assert all(attrs.get("role") == "img" and attrs.get("aria-label") for attrs in charts)
    for tag, attrs in shown.tags:
        assert tag != "img" or attrs.get("alt")


def test_pictures_are_small_and_in_their_order(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    pictures = report(tmp_path / "run").pictures()
    assert [max(picture.size) for picture in pictures] == [720, 720]
    reds = [int(np.asarray(picture)[0, 0, 0]) for picture in pictures]
    assert reds == pytest.approx([10, 20], abs=3)
    for step in range(30, 400, 10):
        Image.new("RGB", (8, 8)).save(tmp_path / "run" / "samples" / f"step-{step:08d}.png")
    shown = report(tmp_path / "run")
    assert len(shown.pictures()) == 8
    captions = [a["alt"] for tag, a in shown.tags if tag == "img"]
    assert (captions[0], captions[-1]) == ("step 10", "step 390")


def test_paths_and_names_of_this_machine_are_not_shown(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    shown = report(tmp_path / "run").text
    assert "someone" not in shown
    assert str(tmp_path) not in shown
    assert "root: people" in shown
    assert redacted_overrides(["data.root=/home/me/x", "train.steps=4", "a"]) == [
        "data.root=x", "train.steps=4", "a",
    ]  # fmt: skip
    assert redacted_overrides(
        ["data.sources=[{root: /home/me/x, repeats: 2}, {root: '/home/me/y z'}]", "a.b=[/home/me"]
    ) == ["data.sources=[{root: x, repeats: 2}, {root: y z}]", "a.b=…"]


def test_a_killed_run_has_its_page_and_what_is_no_run_has_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = make_run(tmp_path / "run")
    path = tmp_path / "run" / "metrics.jsonl"
    path.write_text(path.read_text()[:-40])
    assert report(tmp_path / "run").column("loss/global")[-1][0] == records[-2]["step"]
    (tmp_path / "run" / "config.yaml").unlink()  # of before these were written
    (tmp_path / "run" / "environment.json").unlink()
    report(tmp_path / "run")
    before = (tmp_path / "run" / "report.html").read_text()
    for text, expected in [
        ("", "holds no finished step yet"),
        ('{"step": 1, "los', "holds no finished step yet"),
        ('{"step": 1}\nnonsense\n{"step": 3}\n', "metrics.jsonl:2: is no step of a run"),
    ]:
        path.write_text(text)
        assert main(["report", str(tmp_path / "run")]) == 2
        assert expected in capsys.readouterr().err
    assert main(["report", str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().err
    assert (tmp_path / "run" / "report.html").read_text() == before
    assert not list((tmp_path / "run").glob("*.partial"))


def test_runs_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = make_run(tmp_path / "a", seed=1)
    second = make_run(tmp_path / "more" / "a", steps=12, seed=2, ema_decay=0.9)
    out = tmp_path / "both.html"
    runs = [str(tmp_path / "a"), str(tmp_path / "more" / "a")]
    assert main(["report", *runs]) == 2
    assert "--out" in capsys.readouterr().err
    assert main(["report", *runs, "--out", str(out)]) == 0
    shown = Page(out)
    for index, records in enumerate((first, second)):
        for key in ("loss/hand", "val/loss/face/q2", "cosine/face_hand", "time/data"):
            values = [(r["step"], r[key]) for r in records if key in r]
            assert shown.column(key, index) == values
    assert ["train.ema_decay", "–", "0.9"] in shown.rows
    assert not [row for row in shown.rows if row[0] == "train.steps"]
    captions = [a["alt"] for tag, a in shown.tags if tag == "img"]
    assert captions == ["a (1), step 10", "a (2), step 10", "a (1), step 20", "a (2), step 20"]


def test_differences_are_of_the_leaves() -> None:
    one, two = {"a": {"b": 1, "c": [1]}, "d": 2}, {"a": {"b": 1, "c": [2]}, "e": None}
    assert differences([one, two]) == [("a.c", [[1], [2]]), ("d", [2, None])]
    assert differences([one, one]) == []


def test_the_parts_make_any_page() -> None:
    points = [Point("sum", 1.0, 2.0, 0.1, 0.5, "c-1"), Point("<exact>", 3.0, 5.0)]
    chart = scatter(points, "cost & gain", "step time", "gain")
    assert chart.count("<circle") == 2
    assert "&lt;exact&gt;: 3, 5" in chart
    assert "sum: 1 ± 0.1, 2 ± 0.5" in chart
    centres = [float(x) for x in re.findall(r'<circle cx="([\d.]+)"', chart)]
    assert centres[0] < centres[1]
    curve = Curve([(1.0, 2.0), (3.0, 5.0)], "c-1")
    joined = scatter(points, "cost & gain", "step time", "gain", curves=[curve])
    ends = re.findall(r'class="c-1 joined"><path d="M([\d.]+) [\d.]+L([\d.]+) ', joined)
    assert [float(x) for x in ends[0]] == pytest.approx(centres, abs=0.06)
    body = [tiles([("best", "3", "of 4")]), table(["a"], [["<i>", 0.12345, None]]), chart]
    whole = page("a < b", [section("c > d", *body)])
    assert "<h1>a &lt; b</h1>" in whole
    assert "&lt;i&gt;" in whole
    assert "0.1235" in whole or "0.1234" in whole
    assert scatter([Point("one", 1.0, 0.0)], "t", "x", "y", log_x=True).count("<circle") == 1


def test_laps_sum_to_the_step() -> None:
    timer = StepTimer(torch.device("cpu"))
    started = time.perf_counter()
    timer.start()
    time.sleep(0.01)
    timer.mark("data")
    for _ in range(2):
        timer.mark("forward")
        time.sleep(0.01)
        timer.mark("backward")
    time.sleep(0.01)
    timer.mark("other")
    total = time.perf_counter() - started
    spent = timer.seconds(total)
    assert math.fsum(spent.values()) == pytest.approx(total)
    assert spent["time/data"] >= 0.01
    assert spent["time/backward"] >= 0.02
    assert spent["time/other"] >= 0.01
    assert spent["time/encode"] == spent["time/update"] == 0
    timer.mark("data")  # outside a step
    assert sum(timer.seconds(0.0).values()) == 0


def test_the_commit_is_of_the_tree_that_holds_the_package(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    assert commit(package) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e"]
    subprocess.run([*git, "init", "-q"], check=True)
    assert commit(package) is None  # not of that tree
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "first"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    assert commit(package) == head.stdout.strip()
    (package / "__init__.py").write_text("1")
    assert commit(package) == head.stdout.strip() + "+"


def log_run(output: Path, config: Config, records: Sequence[dict[str, Any]], start: int) -> None:
    log = Log(output, 20, start, NAMES, trackers(output, config, start))
    for r in records[start:]:
        log.write(r)
        if r["step"] == 10:
            log.picture("samples", np.zeros((8, 8, 3), np.uint8), r["step"])
    log.close()


def numbers(records: Sequence[dict[str, Any]]) -> dict[str, dict[int, float]]:
    """What is not None of metrics.jsonl, by key and step."""
    found: dict[str, dict[int, float]] = {}
    for r in records:
        for key, value in r.items():
            if value is not None and key != "step":
                found.setdefault(key, {})[r["step"]] = value
    return found


def test_tensorboard_has_the_names_and_numbers_of_the_metrics(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    records = [record(step, random.Random(step)) for step in range(1, 13)]
    log_run(tmp_path, settings(tmp_path), records, 0)
    written = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert written == records
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    expected = numbers(records)
    assert set(events.Tags()["scalars"]) == set(expected)
    for key, values in expected.items():
        found = {event.step: event.value for event in events.Scalars(key)}
        assert found == pytest.approx(values, rel=1e-6)


def wandb_history(output: Path) -> list[dict[int, dict[str, Any]]]:
    """What wandb's own files hold, one per start, by step."""
    from wandb.proto.wandb_internal_pb2 import Record
    from wandb.sdk.internal.datastore import DataStore

    runs = []
    for path in sorted(output.glob("wandb/offline-run-*/*.wandb")):
        store, found = DataStore(), {}
        store.open_for_scan(str(path))
        while (data := store.scan_data()) is not None:
            item = Record()
            item.ParseFromString(data)
            if item.WhichOneof("record_type") == "history":
                row = {i.key or "/".join(i.nested_key): i.value_json for i in item.history.item}
                row = {key: json.loads(value) for key, value in row.items()}
                found[row.pop("_step")] = row
        runs.append(found)
    return runs


@pytest.mark.slow
def test_wandb_has_the_names_and_numbers_of_the_metrics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed: pip install '.[wandb]'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = settings(tmp_path, wandb="people", wandb_name="first")
    check_tracking(config)
    records = [record(step, random.Random(step)) for step in range(1, 13)]
    log_run(tmp_path, config, records[:10], 0)
    known = (tmp_path / "wandb_id.txt").read_text()
    time.sleep(1.1)  # wandb names a start's folder by the second
    log_run(tmp_path, config, records, 10)
    assert (tmp_path / "wandb_id.txt").read_text() == known
    first, second = wandb_history(tmp_path)
    assert (sorted(first), sorted(second)) == ([*range(1, 11)], [11, 12])
    assert first[10]["samples/_type"] == "image-file"
    files = sorted(tmp_path.glob("wandb/offline-run-*"))
    assert all(path.name.endswith(known.strip()) for path in files)
    for step, row in (first | second).items():
        own = {k: v for k, v in row.items() if not k.startswith(("_", "samples/"))}
        assert own == {k: v for k, v in records[step - 1].items() if v is not None and k != "step"}


@pytest.mark.slow
def test_wandb_without_a_key_is_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed: pip install '.[wandb]'")
    check_tracking(settings(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    code = (
        "from pathlib import Path; from test_report import settings;"
        "from fairhuman.training.trackers import check_tracking;"
        "check_tracking(settings(Path('x'), wandb='people'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parent,
        check=False,
    )  # fmt: skip
    assert "ConfigError: train.wandb = 'people': wandb has no key; run `wandb login`" in done.stderr


def test_a_missing_wandb_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # as import sees what is not there
    with pytest.raises(ConfigError, match=r"train.wandb = 'people': wandb is not installed; pip"):
        check_tracking(settings(tmp_path, wandb="people"))


def test_the_resolved_config_is_on_the_page_as_yaml(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    text = re.search(r"<pre>(.*?)</pre>", report(tmp_path / "run").text, re.DOTALL)
    assert text
    tree = yaml.safe_load(text[1].replace("&#x27;", "'").replace("&quot;", '"'))
    assert tree["train"]["steps"] == 20
    assert tree["fairness"]["mode"] == "exact"
