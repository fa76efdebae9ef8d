"""Drawn people and a tiny SDXL, to try everything without photographs or weights."""
