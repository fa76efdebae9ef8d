"""The page: one HTML file that needs no other."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from html import escape

import numpy as np

from fairhuman.common.html import document
from fairhuman.curation.inspection.findings import KINDS, NOTES
from fairhuman.curation.inspection.histogram import histogram
from fairhuman.curation.inspection.rows import Inspection, Sample
from fairhuman.curation.inspection.thumbnails import colour

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; --bad: #c62828; --note: #777; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1500px; margin: 2rem auto; }
body { padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; } td, th { padding: .2rem .8rem .2rem 0; text-align: left; }
td.n { text-align: right; font-variant-numeric: tabular-nums; }
.plots { display: flex; flex-wrap: wrap; gap: 2rem; }
.plots figure { margin: 0; width: 480px; max-width: 100%; }
svg text { font-size: 11px; fill: currentColor; }
.mid { text-anchor: middle; } .end { text-anchor: end; }
.axis { stroke: currentColor; }
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); gap: 1rem; }
.sheet.wide { grid-template-columns: repeat(auto-fill, minmax(560px, 1fr)); }
.card { border: 1px solid var(--line); border-radius: 6px; padding: .6rem; }
.card { overflow-wrap: anywhere; }
.card img { display: block; max-width: 100%; margin: 0 auto .4rem; }
.card p { margin: .15rem 0; font-size: 13px; } .caption { color: var(--note); }
.bad { color: var(--bad); } @media (prefers-color-scheme: dark) { .bad { color: #ff8a80; } }
.note { color: var(--note); }
.key { display: inline-block; width: .8em; height: .8em; margin: 0 .3em 0 1em; }
"""


def render(found: Inspection, limit: int) -> str:
    """Return the page's HTML, with at most `limit` samples on its sheet."""
    title = f"{found.root.resolve().name}: data set"
    return document(title, _STYLE, "\n".join(_parts(found, limit)))


def _parts(found: Inspection, limit: int) -> Iterator[str]:
    name = escape(found.root.resolve().name)
    shown = found.worst_first()[:limit]
    yield f"<h1>{name}</h1>"
    yield f"<p>{escape(found.summary())}</p>"
    yield from _table(found, shown)
    yield "<h2>Sizes of the regions</h2>"
    yield (
        f"<p>Side of the square of the same area, at {found.resolution} px and in latent cells of "
        f"{found.cell} px, before boxes are widened by data.mask_margin.</p>"
    )
    yield '<div class="plots">'
    for region in found.regions:
        sides = [size.side() for sample in found.samples for size in sample.sizes_of(region)]
        yield "<figure>" + _plot(region, sides, found.cell) + "</figure>"
    yield "</div>"
    yield from _sheet(found, shown)


def _plot(region: str, sides: Sequence[float], cell: int) -> str:
    title = f"{region}: {len(sides)}"
    if sides:
        title += f", median {np.median(sides):.0f} px"
    return f"<figcaption>{escape(title)}</figcaption>" + histogram(
        sides, cell, _css(region), escape(title)
    )


def _table(found: Inspection, shown: Sequence[Sample]) -> Iterator[str]:
    rows = found.by_kind()
    numbers = {sample.number for sample in shown}
    if not rows:
        yield "<p>Nothing was found to be wrong.</p>"
        return
    yield "<h2>Found</h2><table><tr><th>what</th><th>images</th><th>which</th></tr>"
    for kind, samples in rows.items():
        mark = "note" if kind in NOTES else "bad"
        links = [_link(sample, numbers) for sample in samples[:12]]
        more = f" and {len(samples) - 12} more" if len(samples) > 12 else ""
        yield (
            f'<tr><td class="{mark}">{escape(KINDS[kind])}</td><td class="n">{len(samples)}</td>'
            f"<td>{', '.join(links)}{more}</td></tr>"
        )
    yield "</table>"


def _sheet(found: Inspection, shown: Sequence[Sample]) -> Iterator[str]:
    yield "<h2>Samples, worst first</h2>"
    keys = [
        f'<span class="key" style="background:{_css(region)}"></span>{escape(region)}'
        for region in found.regions
    ]
    if found.train_view:
        yield (
            "<p>As the trainer has them: the crop, mirrored where it is; next to it the masks at "
            f"latent resolution, boxes widened.{''.join(keys)}</p>"
        )
    else:
        yield f"<p>What the crop leaves out is dark.{''.join(keys)}</p>"
    if len(shown) < len(found.samples):
        yield f"<p>The first {len(shown)} of {len(found.samples)}; --limit shows more.</p>"
    yield f'<div class="sheet{" wide" if found.train_view else ""}">'
    for sample in shown:
        yield f'<div class="card" id="s{sample.number}">'
        if sample.picture:
            yield f'<img src="{sample.picture}" alt="" loading="lazy">'
        yield f"<p><b>{escape(sample.name)}</b> {escape(sample.detail)}</p>"
        for finding in sample.findings:
            mark = "note" if finding.kind in NOTES else "bad"
            yield f'<p class="{mark}">{escape(finding.text)}</p>'
        yield f'<p class="caption">{escape(sample.caption)}</p></div>'
    yield "</div>"


def _link(sample: Sample, shown: Container[int]) -> str:
    name = escape(sample.name)
    return f'<a href="#s{sample.number}">{name}</a>' if sample.number in shown else name


def _css(region: str) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour(region))
