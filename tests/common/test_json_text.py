"""Where a JSON text is wrong."""

from __future__ import annotations

import pytest

from fairhuman.common.json_text import JsonError, parse


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (b'{"faces": [[1,2,\n', "at column 17"),
        ('{"a": 1,, "b": 2}\n', "at column 9"),
        ('{\n  "a": 1,\n  "b" 2\n}\n', "at line 3, column 7"),
    ],
)
def test_a_mistake_is_where_a_reader_looks_for_it(text: str | bytes, place: str) -> None:
    with pytest.raises(JsonError, match=f"^is not JSON: .* {place}$"):
        parse(text)
