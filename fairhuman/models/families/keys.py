"""What a user calls the models that are given, for messages."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Keys:
    """The names under which a user gives the models."""

    pretrained: str = "model.pretrained"
    config: str = "model.config"
    vae: str = "model.vae"
    control: str = "model.control"
