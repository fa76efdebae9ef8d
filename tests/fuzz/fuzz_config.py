"""Configs and overrides at random: each is taken, or refused in short lines; `make fuzz`.

FUZZ_EXAMPLES is the number of all examples: 5000 in `make fuzz`, 200 among the other tests
(`tests/reports/test_fuzz_config_short.py`). FUZZ_SEED chooses others. Hypothesis keeps what failed
in .hypothesis/, and tries it first in the next run.
"""

from __future__ import annotations

import json
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from fairhuman.common.errors import UserError
from fairhuman.config import Config, load_config
from fairhuman.config.deepspeed_section import Bf16, Fp16, Zero
from fairhuman.evaluation.study.plan import Study, load_study

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "200"))
SEED = int(os.environ.get("FUZZ_SEED", "18"))
SECONDS, MEGABYTES = 2.0, 500
LINE = 2000
"""Characters of a line of a message. It may name a file, a key and a value, 200 each, and list all
keys or choices that are allowed."""
CONFIGS = Path(__file__).resolve().parents[2] / "configs"

HOSTILE = [
    *("010", "0o17", "0x1F", "1:30", "1_000", "1e-5", "1e3", ".5", "5.", "+7", "-0", "1e400"),
    *("9" * 400, "1" + "0" * 30, "-1", "0", "1", "1.0", "0.999999999", ".nan", "-.inf", "1,5"),
    *("true", "True", "yes", "no", "on", "off", "null", "~", "", "None", "~/x", "~nobody/x"),
    *("2024-01-02", "2024-13-45", "2001-12-14t21:59:43.10-05:00", "12:30:45", "=", "<<", "auto"),
    *("!!int abc", "!!python/object:os.system {}", "!!binary aGk=", "!x y", "&a [*a]", "*a"),
    *('"\\0"', '"\\ud800"', '"\\u2028"', '"\\UFFFFFFFF"', '"\\x1b[31m"', "'a''b'", '"a', "a: b"),
    *("[", "]", "{", "}", "[" * 200, "{a: " * 200, "- " * 200, "? [a]\n: b", "a\tb", "\t", "#x"),
    *("a\u2028b", "a\x85b", "é" * 300, "x" * 5000, "../..", "/dev/zero", "configs", "%YAML 9.9"),
    *("[1, [2, [3]]]", "{a: 1, a: 2}", "{x: {y: z}}", "[1, no, 010]", "<<: {a: 1}", "|\n  a\n  b"),
]
WAYS = ["drop", "twice", "indent", "value", "insert", "cut"]
JSON_SCALARS: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 3, 5e8, 1e308, 10**30, 0.5, "2", "auto", "yes", "", "cpu"),
    *([], {}, [2], {"device": "cpu"}, {"device": [1]}, {"enabled": "auto"}, {"a": {"b": [None]}}),
]


def _keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}"
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _keys(field.annotation, f"{prefix}{name}.")


ZERO = "deepspeed.zero_optimization."
KEYS = [
    *_keys(Config),
    *_keys(Fp16, "deepspeed.fp16."),
    *_keys(Bf16, "deepspeed.bf16."),
    *_keys(Zero, ZERO),
    *(f"{ZERO}offload_{what}.{key}" for what in ("param", "optimizer") for key in ("device", "x")),
    *(
        "objectives.scale.face",
        "data.columns.text",
        "deepspeed.optimizer",
        "",
        ".",
        "a.b",
        "a" * 999,
    ),
]
TEXTS = {path.name: path.read_text(encoding="utf-8") for path in sorted(CONFIGS.glob("*.yaml"))}

scalars = st.one_of(
    st.sampled_from(HOSTILE),
    st.text(max_size=40),
    st.floats().map(str),
    st.integers().map(str),
    st.dates().map(str),
)
overrides = st.builds(lambda key, value: f"{key}={value}", st.sampled_from(KEYS), scalars)
trees = st.recursive(
    st.one_of(st.sampled_from(JSON_SCALARS), st.text(max_size=20), st.floats(), st.integers()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(
            st.one_of(st.sampled_from([key.rpartition(".")[2] for key in KEYS]), st.text()),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=12,
)


@st.composite
def mutated(draw: st.DrawFn, text: str) -> str:
    """Return a text with some lines lost, given twice, shifted, or with other values."""
    lines = text.splitlines()
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(lines) - 1))
        line, way = lines[at], draw(st.sampled_from(WAYS))
        if way == "drop" and len(lines) > 1:
            del lines[at]
        elif way == "twice":
            lines.insert(at, line)
        elif way == "indent":
            lines[at] = draw(st.sampled_from(["  ", "\t", " ", "- "])) + line
        elif way == "value":
            lines[at] = f"{line.partition(':')[0]}: {draw(scalars)}"
        elif way == "insert":
            lines.insert(at, draw(scalars))
        else:
            lines[at] = line[: draw(st.integers(0, len(line)))]
    return "\n".join(lines)


def ends_well(load: Callable[[], object]) -> None:
    """Check that a load succeeds, or is refused in short lines of plain text, and is cheap."""
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    try:
        load()
    except UserError as error:
        lines = str(error).split("\n")
        assert 1 <= len(lines) <= 30
        for line in lines:
            assert line.strip()
            assert len(line) <= LINE
            assert not any(
                ord(c) < 32 or 0x7F <= ord(c) < 0xA0 or c in "\u2028\u2029" for c in line
            )
            line.encode("utf-8")
    assert time.process_time() - started <= SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before <= MEGABYTES * 1024


def taken(path: Path, given: Sequence[str] = ()) -> None:
    """Load a config; one that is taken is the same after it was saved."""
    config = load_config(path, given)
    saved = path.with_name("saved.yaml")
    config.save(saved)
    assert load_config(saved) == config


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    print(f"\nFUZZ_SEED={SEED} FUZZ_EXAMPLES={EXAMPLES}")
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def fuzz(share: float) -> Callable[[Any], Any]:
    """Run a test with its share of the examples, from the seed."""
    return lambda test: seed(SEED)(
        settings(
            max_examples=max(1, round(share * EXAMPLES)),
            deadline=None,  # the machine may be busy: `ends_well` takes this process's own time
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        )(test)
    )


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    return path


@fuzz(0.3)
@given(text=st.sampled_from(sorted(TEXTS)).flatmap(lambda name: mutated(TEXTS[name])))
def test_mutated_configs(folder: Path, text: str) -> None:
    path = write(folder / "c.yaml", text)
    ends_well(lambda: taken(path))
    ends_well(lambda: load_study(path))


@fuzz(0.2)
@given(text=st.one_of(st.text(), st.binary(), st.lists(scalars).map("\n".join)))
def test_random_text(folder: Path, text: str | bytes) -> None:
    path = write(folder / "c.yaml", text)
    ends_well(lambda: taken(path))


@fuzz(0.2)
@given(
    tree=st.dictionaries(st.sampled_from([*Config.model_fields, *Study.model_fields]), trees),
    good=st.booleans(),
)
def test_random_trees(folder: Path, tree: dict[str, Any], good: bool) -> None:
    whole = yaml.safe_load(TEXTS["sdxl_lora.yaml"]) if good else {}
    path = write(folder / "c.yaml", json.dumps({**whole, **tree}))
    ends_well(lambda: taken(path))
    ends_well(lambda: load_study(path))


@fuzz(0.2)
@given(given_=st.lists(st.one_of(overrides, scalars), min_size=1, max_size=3))
def test_overrides(folder: Path, given_: list[str]) -> None:
    path = write(folder / "c.yaml", TEXTS["demo.yaml"])
    ends_well(lambda: taken(path, given_))


@fuzz(0.1)
@given(
    text=st.one_of(
        st.dictionaries(st.sampled_from(["zero_optimization", "fp16", "bf16", "x"]), trees).map(
            json.dumps
        ),
        mutated((CONFIGS / "deepspeed" / "zero3_offload.json").read_text()),
        st.text(),
    )
)
def test_deepspeed_files(folder: Path, text: str) -> None:
    write(folder / "ds.json", text)
    path = write(folder / "c.yaml", TEXTS["demo.yaml"])
    ends_well(lambda: taken(path, [f"deepspeed={folder / 'ds.json'}"]))
