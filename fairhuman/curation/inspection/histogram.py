"""A histogram as inline SVG."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 460, 190, 38, 44, 14
# Sides in latent cells: powers of two, with the first bar for what is tiny.
EDGES = (0, 1, 2, 4, 8, 16, 32, 64, 128)


def histogram(sides: Sequence[float], cell: int, colour: str, title: str) -> str:
    """Return the SVG of how many regions have which side, in pixels and in latent cells.

    Args:
        sides: in pixels at the training resolution.
        cell: pixels per side of a latent cell.
        colour: of the bars, as CSS has it.
        title: for readers that cannot see it; plain text without markup.
    """
    edges = np.array(EDGES, dtype=np.float64) * cell
    counts, _ = np.histogram(np.minimum(sides, edges[-1]), edges)
    step = (_WIDTH - _LEFT) / len(counts)
    most = max(1, int(counts.max()))
    room = _HEIGHT - _BOTTOM - _TOP
    base = _HEIGHT - _BOTTOM
    parts = [
        f'<svg viewBox="0 0 {_WIDTH + 20} {_HEIGHT}" role="img" aria-label="{title}">',
        f'<line x1="{_LEFT}" y1="{base}" x2="{_WIDTH}" y2="{base}" class="axis"/>',
        f'<text x="{_LEFT - 6}" y="{base + 15}" class="end">px</text>',
        f'<text x="{_LEFT - 6}" y="{base + 31}" class="end">cells</text>',
    ]
    for i, count in enumerate(counts.tolist()):
        x, height = _LEFT + i * step, room * count / most
        parts.append(
            f'<rect x="{x + 2:.1f}" y="{base - height:.1f}" width="{step - 4:.1f}" '
            f'height="{height:.1f}" fill="{colour}"><title>{count}</title></rect>'
        )
        if count:
            middle = x + step / 2
            parts.append(
                f'<text x="{middle:.1f}" y="{base - height - 3:.1f}" class="mid">{count}</text>'
            )
    for i, cells in enumerate(EDGES):
        x = _LEFT + i * step
        parts.append(f'<text x="{x:.1f}" y="{base + 15}" class="mid">{cells * cell}</text>')
        parts.append(f'<text x="{x:.1f}" y="{base + 31}" class="mid">{cells}</text>')
    return "\n".join([*parts, "</svg>"])
