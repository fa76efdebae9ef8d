"""The places that drawn people stand in."""

from __future__ import annotations

import random

from fairhuman.demo.drawn.canvas import Canvas, Color, ellipse, mix, shade, smooth

WALLS: dict[str, Color] = {
    "yellow": (250, 222, 110),
    "blue": (130, 190, 240),
    "green": (150, 214, 150),
    "pink": (250, 180, 205),
    "lilac": (196, 176, 240),
    "turquoise": (120, 214, 208),
}
SKY: tuple[Color, Color] = ((120, 190, 250), (215, 240, 255))


def _box(x: float, y: float, w: float, h: float) -> list[tuple[float, float]]:
    return [(x, y), (x + w, y), (x + w, y + h), (x, y + h)]


def _park(canvas: Canvas, rng: random.Random) -> str:
    view = canvas.frame
    canvas.gradient(*SKY)
    canvas.blob(view, [ellipse(rng.choice((0.12, 0.88)), 0.12, 0.08, 0.08)], (255, 220, 80), 0, 0)
    canvas.blob(view, [ellipse(rng.uniform(0.1, 0.9), 0.85, 0.9, 0.3)], (150, 214, 110), 0, 0)
    for x in (rng.uniform(0.02, 0.2), rng.uniform(0.8, 0.98)):
        canvas.blob(view, [_box(x - 0.02, 0.5, 0.04, 0.2)], (140, 95, 60), 0, 0.003)
        crown = [
            ellipse(x + dx, 0.4 + dy, 0.1, 0.1) for dx, dy in ((-0.06, 0), (0.06, 0), (0, -0.09))
        ]
        canvas.blob(view, crown, (70, 165, 85), 0, 0.004)
    canvas.blob(view, [_box(-0.1, 0.7, 1.2, 0.4)], (105, 190, 90), 0, 0)
    return "in a green park"


def _room(canvas: Canvas, rng: random.Random) -> str:
    view = canvas.frame
    name = rng.choice(sorted(WALLS))
    wall = WALLS[name]
    canvas.gradient(wall, wall)
    for k in range(8):
        canvas.blob(view, [_box(k / 8, 0, 0.05, 0.8)], mix(wall, (255, 255, 255), 0.22), 0, 0)
    x = rng.choice((0.04, 0.74))
    canvas.blob(view, [_box(x, 0.1, 0.22, 0.26)], (190, 228, 255), 0, 0.012, (255, 255, 255))
    canvas.stroke(view, [(x + 0.11, 0.1), (x + 0.11, 0.36)], 0.014, (255, 255, 255))
    canvas.stroke(view, [(x, 0.23), (x + 0.22, 0.23)], 0.014, (255, 255, 255))
    canvas.blob(view, [_box(-0.1, 0.78, 1.2, 0.3)], (190, 130, 90), 0, 0.01, (245, 240, 235))
    return f"in a room with {name} walls"


def _beach(canvas: Canvas, rng: random.Random) -> str:
    view = canvas.frame
    canvas.gradient(*SKY)
    canvas.blob(view, [ellipse(rng.choice((0.12, 0.88)), 0.13, 0.08, 0.08)], (255, 205, 70), 0, 0)
    canvas.blob(view, [_box(-0.1, 0.42, 1.2, 0.4)], (40, 145, 205), 0, 0)
    for k in range(4):
        x = rng.uniform(0, 0.85)
        canvas.stroke(
            view, [(x, 0.47 + 0.06 * k), (x + 0.14, 0.47 + 0.06 * k)], 0.01, (150, 210, 240)
        )
    sand = smooth([(-0.2, 0.72), (0.3, 0.66), (0.7, 0.74), (1.2, 0.68), (1.2, 1.2), (-0.2, 1.2)])
    canvas.blob(view, [sand], (248, 226, 140), 0, 0.008, (255, 255, 250))
    return "on a sunny beach"


def _street(canvas: Canvas, rng: random.Random) -> str:
    view = canvas.frame
    canvas.gradient((170, 215, 250), (235, 245, 255))
    tones: list[Color] = [(225, 110, 95), (245, 190, 90), (110, 165, 215), (150, 190, 130)]
    rng.shuffle(tones)
    for k, tone in enumerate(tones):
        top = rng.uniform(0.12, 0.35)
        canvas.blob(view, [_box(k / 4, top, 0.25, 0.8)], tone, 0, 0.004)
        for row in range(3):
            for column in range(2):
                pane = _box(k / 4 + 0.045 + 0.1 * column, top + 0.06 + 0.15 * row, 0.055, 0.08)
                canvas.blob(view, [pane], (255, 248, 210), 0, 0.004, shade(tone, 0.35))
    canvas.blob(view, [_box(-0.1, 0.8, 1.2, 0.4)], (165, 165, 175), 0, 0.006)
    return "in a street"


def _night(canvas: Canvas, rng: random.Random) -> str:
    view = canvas.frame
    canvas.gradient((25, 30, 90), (80, 75, 165))
    for _ in range(14):
        x, y = rng.random(), rng.uniform(0, 0.65)
        canvas.blob(view, [ellipse(x, y, 0.008, 0.008)], (255, 250, 200), 0, 0)
    canvas.blob(view, [ellipse(rng.choice((0.13, 0.87)), 0.14, 0.08, 0.08)], (250, 240, 190), 0, 0)
    canvas.blob(view, [ellipse(rng.uniform(0.2, 0.8), 1.0, 0.9, 0.24)], (45, 85, 95), 0, 0)
    return "at night under the stars"


def _plain(canvas: Canvas, rng: random.Random) -> str:
    name = rng.choice(sorted(WALLS))
    wall = WALLS[name]
    canvas.gradient(mix(wall, (255, 255, 255), 0.45), wall)
    return f"on a plain {name} background"


def draw_scene(canvas: Canvas, rng: random.Random) -> str:
    """Paint a place over the whole canvas and return the words for it."""
    return rng.choice((_park, _room, _beach, _street, _night, _plain, _plain))(canvas, rng)
