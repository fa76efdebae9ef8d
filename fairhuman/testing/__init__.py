"""Tiny models of the true structures, made offline, and what every family is held to."""
