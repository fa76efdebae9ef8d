"""A rule whose packages are missing is told before anything is loaded."""

from __future__ import annotations

import sys

import pytest
from small_net import Case

from fairhuman.common.errors import ConfigError
from fairhuman.common.extras import install_line
from fairhuman.config import Config
from fairhuman.fairness.rules import NATIVE, RULES, weighting
from fairhuman.training.rule_check import check_rule


def config(rule: str) -> Config:
    tree = Case(2).config().model_dump()
    tree["fairness"]["rule"] = rule
    return Config.model_validate(tree)


@pytest.mark.parametrize("rule", RULES)
def test_what_is_installed_is_enough_and_what_is_not_is_one_line(
    rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_rule(config(rule))
    weighting.cache_clear()
    for name in ("torchjd", "torchjd.aggregation", "quadprog"):
        monkeypatch.setitem(sys.modules, name, None)
    if rule in NATIVE:
        check_rule(config(rule))
        return
    with pytest.raises(ConfigError) as caught:
        check_rule(config(rule))
    line = str(caught.value)
    assert line.startswith(f"fairness.rule = {rule!r}: ")
    assert line.endswith(f"; {install_line('rules')}, or set fairness.rule=mpd")
    assert "\n" not in line
