"""The JSON schema of the configs, and the references that are made of it and of the parsers."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import pytest
import yaml

from fairhuman.cli import main
from fairhuman.config import Config, training_configs
from fairhuman.config.json_schema import config_schema
from fairhuman.config.yaml_settings import Section
from fairhuman.evaluation.study.plan import Study, study_schema

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = [*training_configs(ROOT / "configs"), ROOT / "examples" / "lora" / "config.yaml"]
STUDIES = sorted((ROOT / "configs").glob("study*.yaml"))


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    """mkdocs' hook, which is no module of a package."""
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def problems(schema: dict[str, Any], tree: Any) -> list[str]:
    validator = jsonschema.Draft7Validator(schema)
    return [error.message for error in validator.iter_errors(tree)]


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def leaves(model: type[Section], prefix: str = "") -> Iterator[str]:
    """Every key of a model that is no section, by pydantic's own fields."""
    for name, field in model.model_fields.items():
        kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
        inner = [k for k in kinds if isinstance(k, type) and issubclass(k, Section)]
        if inner:
            named = "NAME." if field.annotation not in inner and "dict" in str(kinds[0]) else ""
            yield from leaves(inner[0], f"{prefix}{name}.{named}")
        else:
            yield f"{prefix}{name}"


@pytest.mark.parametrize("schema", [config_schema(), study_schema()], ids=["config", "study"])
def test_it_is_a_schema_of_the_dialect_that_it_names(schema: dict[str, Any]) -> None:
    jsonschema.Draft7Validator.check_schema(schema)
    assert jsonschema.validators.validator_for(schema) is jsonschema.Draft7Validator


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_shipped_configs_are_valid(path: Path) -> None:
    assert problems(config_schema(), read(path)) == []


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.name)
def test_the_shipped_studies_are_valid(path: Path) -> None:
    assert problems(study_schema(), read(path)) == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.rooot", "people"),
        ("data.resolution", 1000.5),
        ("data.resolution", 1001),
        ("data.flip", "yes"),
        ("train.steps", 0),
        ("model.method", "dreambooth"),
        ("optimizer.betas", [0.9]),
        ("optimizer.betas", [0.9, 1.5]),
        ("objectives.scale", {"hand": 0}),
        ("noise.bias_range", [0, 5, 9]),
        ("deepspeed", 2),
    ],
)
def test_what_the_loader_refuses_the_schema_refuses(key: str, value: Any) -> None:
    tree = read(ROOT / "configs" / "demo.yaml")
    node = tree
    *parents, last = key.split(".")
    for parent in parents:
        node = node.setdefault(parent, {})
    node[last] = value
    assert problems(config_schema(), tree)


def test_the_command_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "schema"]) == 0
    assert json.loads(capsys.readouterr().out) == config_schema()
    assert main(["config", "schema", "--study"]) == 0
    assert json.loads(capsys.readouterr().out) == study_schema()


@pytest.mark.parametrize("model", [Config, Study])
def test_every_key_has_an_entry_with_a_meaning(generate: ModuleType, model: type[Section]) -> None:
    schema = config_schema() if model is Config else study_schema()
    entries = {key: node for key, node, _ in generate._keys(schema, schema, "")}
    assert set(leaves(model)) <= set(entries)
    for key, node in entries.items():
        assert len(node.get("description", "").split()) >= 3, f"{key}: has no meaning"
    page = generate.schema_page("", schema)
    for key in leaves(model):
        assert f"### `{key}` {{ #{key} }}" in page


def test_every_argument_has_a_meaning(generate: ModuleType) -> None:
    page = generate.cli_page()
    for module in generate.PROGRAMS:
        parsers = [importlib.import_module(module).make_parser()]
        for parser in parsers:
            assert f"`{parser.prog}`" in page
            for action in parser._actions:
                if isinstance(action, argparse._SubParsersAction):
                    parsers += action.choices.values()
                else:
                    assert action.help, f"{parser.prog}: {action.dest} has no help"
