"""The microbenchmarks: they check before they time, and their tables hold what was measured."""

from __future__ import annotations

import csv
from functools import partial
from pathlib import Path

import pytest
import torch

from fairhuman.kernels.bench import __main__ as bench
from fairhuman.kernels.bench import report, sizes, solve_mpd
from fairhuman.kernels.bench.case import Case, Contender, contenders
from fairhuman.kernels.bench.timing import time_in_turn

CPU = torch.device("cpu")


def test_what_is_wrong_is_not_timed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def never() -> None:
        raise AssertionError("it was timed")

    for error in (1e-3, float("nan")):
        case = Case("gram", "K = 2", [Contender("gram", never, error)], bound=1e-5)
        monkeypatch.setattr(
            "fairhuman.kernels.bench.gram.cases", lambda *args, case=case: iter([case])
        )
        assert bench.main(["--op", "gram", "--device", "cpu"]) == 1
        assert "not timed" in capsys.readouterr().err


@pytest.mark.parametrize("op", bench.OPS)
def test_every_op_passes_its_check_and_is_reported(
    op: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sizes, "LORA", 5000)
    monkeypatch.setattr("fairhuman.kernels.bench.add_sketch.PIECE", 1500)
    monkeypatch.setattr("fairhuman.kernels.bench.fair_backward.WIDTHS", (9, 20, 20, 12))
    monkeypatch.setattr(solve_mpd, "COUNT", 2)
    monkeypatch.setattr("fairhuman.kernels.bench.timing.ROUNDS", 2)
    monkeypatch.setattr("fairhuman.kernels.bench.timing.ROUND_S", 1e-4)
    monkeypatch.setattr(bench, "bandwidth", lambda device: 1e10)
    for module in ("gram", "combine", "region_mse"):  # torch.compile takes a minute
        monkeypatch.setattr(f"fairhuman.kernels.bench.{module}.compiled", lambda *args: None)
    table = tmp_path / "new" / "bench.csv"
    arguments = ["--op", op, "--quick", "--device", "cpu", "--csv", str(table)]
    assert bench.main(arguments) == 0
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert {row["op"] for row in rows} == {op}
    for row in rows:
        assert 0 < float(row["p20_us"]) <= float(row["p50_us"]) <= float(row["p80_us"])
        assert row["device"] == report.device_name(CPU)
        assert f"torch {torch.__version__}" in row["versions"]
    assert all(float(row["times_ours"]) == 1 for row in rows if row["contender"] == op)
    printed = capsys.readouterr().out
    assert all(row["contender"] in printed for row in rows)


def test_the_published_call_is_wrong_where_gradients_are_small() -> None:
    """The bench's own claim: a backward error near 1 where norms are near 1e-3."""
    small = next(case for case in solve_mpd.cases(CPU, True) if "0.001" in case.problem)
    errors = {contender.name: contender.error for contender in small.contenders}
    assert errors["scipy, as published"] > 0.5
    assert all(error < 1e-14 for name, error in errors.items() if "scipy" not in name)


def test_a_contender_that_cannot_do_it_is_left_out_and_ours_never(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse() -> torch.Tensor:
        raise RuntimeError("dot only supports n up to 2147483647\nC++ stack")

    ways = {"gram": lambda: torch.ones(1), "dots": refuse, "product": lambda: torch.zeros(1)}
    able = contenders(ways, torch.Tensor.item, CPU)
    assert [(one.name, one.error) for one in able] == [("gram", 1.0), ("product", 0.0)]
    said = capsys.readouterr().err
    assert said == "dots is left out: dot only supports n up to 2147483647\n"
    with pytest.raises(RuntimeError, match="dot only"):
        contenders({"gram": refuse}, torch.Tensor.item, CPU)


def test_contenders_run_in_turn() -> None:
    order: list[str] = []
    contenders = [Contender(name, partial(order.append, name), 0.0) for name in "ab"]
    timings = time_in_turn(contenders, rounds=3)
    assert len(timings) == 2
    turns = [name for index, name in enumerate(order) if index == 0 or name != order[index - 1]]
    assert turns[-6:] == ["a", "b"] * 3


def test_plots_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    case = Case("gram", "K = 2", [Contender("gram", lambda: None, 0.0)], bound=1.0)
    rows = list(report.rows(case, time_in_turn(case.contenders, rounds=2), None, CPU))
    (path,) = report.plot(rows, tmp_path)
    assert path.stat().st_size > 1000
