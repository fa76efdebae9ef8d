"""Whether what `fairness.rule` is solved by is installed."""

from __future__ import annotations

from fairhuman.common.errors import ConfigError
from fairhuman.config import Config
from fairhuman.fairness.rules import NATIVE, weighting


def check_rule(config: Config) -> None:
    """Check that the rule's weights can be solved for.

    Raises:
        ConfigError: a package is missing.
    """
    rule = config.fairness.rule
    if rule in NATIVE:
        return
    try:
        weighting(rule)
    except ImportError as error:
        why = str(error).partition(": ")[2]
        raise ConfigError(f"fairness.rule = {rule!r}: {why}, or set fairness.rule=mpd") from error
