"""Files of prompts: three forms, the same prompts; what is wrong has its place and its field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from fairhuman.common.errors import ConfigError
from fairhuman.config import SamplePrompt, load_config
from fairhuman.config.json_schema import config_schema
from fairhuman.config.prompt_file import read_prompt_file, read_prompts

ASKED: list[Any] = [
    "a man, 'smiling'",
    {"prompt": "a woman: hands", "size": "832x1216", "seed": 7, "guidance": 3},
    {"prompt": "2024", "negative": "blur", "steps": 5, "size": 512, "lora_scale": 0},
]


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def forms(folder: Path) -> list[Path]:
    yaml = (
        "- a man, 'smiling'\n"
        "- prompt: 'a woman: hands'\n  size: 832x1216\n  seed: 7\n  guidance: 3\n"
        "- {prompt: 2024, negative: blur, steps: 5, size: 512, lora_scale: 0}\n"
    )
    lines = "\n".join(map(json.dumps, ASKED))
    return [
        write(folder, "p.yaml", yaml),
        write(folder, "p.jsonl", f"{lines}\n\n"),
        write(folder, "p.json", json.dumps(ASKED, indent=1)),
    ]


def test_yaml_and_json_say_the_same(tmp_path: Path) -> None:
    expected = [SamplePrompt.model_validate(asked) for asked in ASKED]
    assert (expected[1].size, expected[2].size) == ((832, 1216), (512, 512))
    for path in forms(tmp_path):
        found = read_prompt_file(path)
        assert [asked.model_dump() for asked in found] == [e.model_dump() for e in expected]
        assert all(asked.place.startswith(f"{path}:") for asked in found)
        assert read_prompts(path) == ["a man, 'smiling'", "a woman: hands", "2024"]


def test_a_config_holds_what_its_file_holds(tmp_path: Path) -> None:
    for path in forms(tmp_path):
        config = load_config("sdxl_lora", [f"train.sample_prompts={path}"])
        assert config.model_dump(mode="json")["train"]["sample_prompts"] == [
            "a man, 'smiling'",
            {"prompt": "a woman: hands", "size": "832x1216", "seed": 7, "guidance": 3.0},
            {"prompt": "2024", "negative": "blur", "size": 512, "steps": 5, "lora_scale": 0.0},
        ]
        saved = tmp_path / "saved.yaml"
        config.save(saved)
        path.unlink()  # the saved config needs it no more
        assert load_config(saved) == config
        jsonschema.validate(json.loads(config.model_dump_json()), config_schema())


def test_lines_of_a_text_are_prompts(tmp_path: Path) -> None:
    path = write(tmp_path, "p.txt", "a man\r\n\n  {prompt: b}  \n- c\n")
    assert read_prompts(path) == ["a man", "{prompt: b}", "- c"]
    assert [asked.place for asked in read_prompt_file(path)] == [f"{path}:{n}" for n in (1, 3, 4)]


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("p.yaml", "- a\n- prompt: b\n  size: 65\n", ["p.yaml:3: size = 65: its sides must be"]),
        ("p.yaml", "- prompt: b\n  size: 8x9x8\n", ["p.yaml:2: size = '8x9x8': must be a side in"]),
        ("p.yaml", "- prompt: b\n\n  sede: 1\n", ["p.yaml:3: sede: unknown key (did you mean"]),
        ("p.yaml", "- size: 64\n", ["p.yaml:1: prompt: is missing"]),
        ("p.yaml", "- [a, b]\n", ["p.yaml:1: ['a', 'b']: write a prompt, or keys such as"]),
        ("p.yaml", "prompt: b\n", ["p.yaml: must hold a list; begin each prompt with '- '"]),
        ("p.yaml", "", ["p.yaml: must hold a list"]),
        ("p.yaml", "[]", ["p.yaml: holds no prompt"]),
        ("p.yaml", "- a\n- b: [\n", ["p.yaml: is not YAML: line 3"]),
        ("p.jsonl", '"a"\n{"prompt": "b", "steps": 0}\n', ["p.jsonl:2: steps = 0: must be"]),
        ("p.jsonl", '"a"\n{"prompt": \n', ["p.jsonl:2: "]),
        (
            "p.jsonl",
            '{"prompt": "b", "seed": -1, "guidance": 1e9}\n7\n',
            ["p.jsonl:1: seed = -1: ", "p.jsonl:1: guidance = 1000", "p.jsonl:2: 7: write"],
        ),
        ("p.txt", "\n", ["p.txt: holds no prompt; write one per line"]),
        ("p.txt", "a\n\0\n", ["p.txt, line 2: holds the character U+0000"]),
    ],
)  # fmt: skip
def test_what_is_wrong_has_its_line_its_field_and_the_fix(
    tmp_path: Path, name: str, text: str, told: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("sdxl_lora", [f"train.sample_prompts={write(tmp_path, name, text)}"])
    lines = str(caught.value).splitlines()
    assert len(lines) == len(told)
    for line, part in zip(lines, told, strict=True):
        assert part in line


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["model.method=full", "model.lora={}"], "p.jsonl:1: lora_scale = 0.5: model.method is 'f"),
        ([], "p.jsonl:2: control = 'pose.png': model.method is 'lora', which has no"),
    ],
)  # fmt: skip
def test_a_method_refuses_what_it_cannot_draw(
    tmp_path: Path, overrides: list[str], told: str
) -> None:
    lines = ['{"prompt": "a", "lora_scale": 0.5}', '{"prompt": "a", "control": "pose.png"}']
    path = write(tmp_path, "p.jsonl", "\n".join(lines))
    with pytest.raises(ConfigError) as caught:
        load_config("sdxl_lora", [f"train.sample_prompts={path}", *overrides])
    assert told in str(caught.value)


def test_no_file_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"^/nowhere/p.yaml: there is no such file of prompts$"):
        load_config("sdxl_lora", ["train.sample_prompts=/nowhere/p.yaml"])
