"""Tiny models of the true structures, made offline, and what every family is held to."""

from fairhuman.testing.family import check_family

__all__ = ["check_family"]
