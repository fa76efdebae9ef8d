"""What comes from elsewhere is read without running any of it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import fairhuman
from fairhuman.common.errors import ConfigError, UserError
from fairhuman.models.generate import Source, generate
from fairhuman.zero.reshard import check_files, open_states


class Code:
    """When it is unpickled, a file appears."""

    def __init__(self, ran: Path) -> None:
        self.ran = ran

    def __reduce__(self) -> Any:
        return Path.touch, (self.ran,)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path) -> None:
    folder, ran = tmp_path / "deepspeed", tmp_path / "ran"
    folder.mkdir()
    file = folder / "zero_pp_rank_0_mp_rank_00_optim_states.pt"
    torch.save({"weights": torch.zeros(3), "step": 7}, file)
    check_files(tmp_path)
    torch.save({"weights": torch.zeros(3), "step": Code(ran)}, file)
    with pytest.raises(ConfigError, match=file.name):
        check_files(tmp_path)
    with pytest.raises(ConfigError, match=file.name):
        open_states(tmp_path, 0)
    assert not ran.exists()


def test_a_pickled_lora_is_refused_before_a_model_is_loaded(tmp_path: Path) -> None:
    file, ran = tmp_path / "lora.bin", tmp_path / "ran"
    torch.save(Code(ran), file)
    with pytest.raises(UserError, match=r"lora\.bin': is no \.safetensors file"):
        generate(Source("nowhere", lora=file), ["x"], tmp_path / "x")
    assert not ran.exists()


def calls(name: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Every call of something of that name in the package: where, and its keywords."""
    for path in Path(fairhuman.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(name):
                words = {word.arg or "**": ast.unparse(word.value) for word in node.keywords}
                yield f"{path.name}: {ast.unparse(node)}", words


def test_only_safetensors_and_weights_are_asked_for() -> None:
    for where, words in calls(".from_pretrained"):
        # Configs, vocabularies and sizes of images.
        kinds = ("CLIPTextConfig.", "CLIPTokenizer.", "AutoTokenizer.", "AutoImageProcessor.")
        reads_no_weights = any(kind in where for kind in (*kinds, "AutoProcessor."))
        reads_no_weights |= "state_dict" in words
        assert reads_no_weights or words.get("use_safetensors") == "True", where
    for name in (".load_lora_weights", "torch.load"):
        for where, words in calls(name):
            wanted = "use_safetensors" if "lora" in name else "weights_only"
            if ": safetensors.torch.load(" in where:  # of bytes that can hold no code
                continue
            assert words.get(wanted) == "True", where
    for where, words in calls(""):
        assert "trust_remote_code" not in words, where
