"""What a metric needs and has not."""

from __future__ import annotations

from fairhuman.common.errors import UserError


class MissingError(UserError):
    """A metric that cannot be computed here: in one line, what is not there and how to get it."""
