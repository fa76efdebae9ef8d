"""One drawn person: what it looks like, how it is painted and the words for it.

Lengths are in heads: the face oval is about 1 high, the origin lies between the shoulders and y
points down. "Left" and "right" in words are the person's own; `side` is -1 for the viewer's left.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from itertools import pairwise

from fairhuman.demo.drawn.canvas import (
    Canvas,
    Color,
    Point,
    Polygon,
    View,
    capsule,
    ellipse,
    mirrored,
    mix,
    shade,
    smooth,
)

SKINS: dict[str, Color] = {
    "pale": (255, 224, 205),
    "light": (246, 200, 165),
    "tan": (222, 166, 120),
    "brown": (170, 110, 72),
    "dark": (122, 76, 52),
}
HAIRS: dict[str, Color] = {
    "black": (38, 32, 42),
    "brown": (105, 62, 36),
    "blond": (240, 200, 85),
    "red": (200, 82, 36),
    "grey": (176, 178, 188),
}
CLOTHES: dict[str, Color] = {
    "red": (222, 52, 58),
    "orange": (245, 140, 40),
    "yellow": (248, 208, 50),
    "green": (52, 165, 85),
    "blue": (48, 105, 215),
    "purple": (135, 72, 185),
    "pink": (240, 110, 165),
    "white": (245, 245, 248),
}
BOTTOMS: dict[str, Color] = {
    "blue": (52, 82, 160),
    "black": (52, 52, 64),
    "brown": (128, 86, 56),
    "grey": (132, 138, 150),
    "green": (62, 112, 82),
}
EYES: tuple[Color, ...] = ((70, 42, 24), (40, 95, 165), (55, 120, 70), (30, 25, 30))
STYLES: dict[str, tuple[str, ...]] = {
    "woman": ("long", "bob", "curly", "bun", "ponytail", "headscarf"),
    "girl": ("long", "bob", "curly", "pigtails", "ponytail"),
    "man": ("short", "spiky", "curly", "bald", "parted"),
    "boy": ("short", "spiky", "curly", "parted"),
}
MOODS = ("smiling", "laughing", "surprised", "calm", "sad")


@dataclass(frozen=True)
class ArmPose:
    """Angles of upper arm, forearm and hand from straight down, outwards, in degrees."""

    upper: float
    fore: float
    hand: float
    palm: bool
    one: str
    both: str
    shown: bool = True


ARMS: dict[str, ArmPose] = {
    "down": ArmPose(12, 9, 8, False, "the {} arm down", "both arms down"),
    "wave": ArmPose(26, 170, 174, True, "waving with the {} hand", "showing both open hands"),
    "near": ArmPose(12, 172, 176, True, "waving with the {} hand", "showing both open hands"),
    "up": ArmPose(138, 164, 168, True, "raising the {} hand high", "raising both hands high"),
    "out": ArmPose(84, 94, 96, True, "the {} arm stretched out", "both arms stretched out"),
    "chest": ArmPose(22, -110, -104, False, "the {} hand on the chest", ""),
    "pocket": ArmPose(
        26, -32, 0, False, "the {} hand in the pocket", "hands in the pockets", False
    ),
    "back": ArmPose(
        20, -42, 0, False, "the {} hand behind the back", "hands behind the back", False
    ),
}
UPPER, FORE = 0.66, 0.62
SHOULDER: Point = (0.47, 0.19)

# Thumb first. Base across the hand (towards the thumb) and along it, angle, length, radius.
FINGERS: tuple[tuple[float, float, float, float, float], ...] = (
    (0.10, 0.14, 58, 0.28, 0.050),
    (0.125, 0.33, 24, 0.26, 0.043),
    (0.045, 0.36, 7, 0.30, 0.044),
    (-0.04, 0.35, -10, 0.27, 0.043),
    (-0.12, 0.29, -29, 0.22, 0.039),
)


@dataclass(frozen=True)
class Person:
    """Every choice that makes one person."""

    kind: str
    skin: str
    hair: str
    style: str
    top: str
    pattern: str
    bottom: str
    wear: str
    long_sleeves: bool
    mood: str
    eyes: Color
    glasses: bool
    beard: bool
    tilt: float
    behind: bool
    arms: tuple[str, str]
    bends: tuple[float, float]
    hand: float

    @property
    def knees(self) -> float:
        """Return how far below the shoulders the feet begin; children have shorter legs."""
        return 2.25 if self.kind in ("girl", "boy") else 2.7


def choose_person(rng: random.Random, arms: tuple[str, str], behind: bool) -> Person:
    """Draw the choices for one person; the poses of the two arms are given."""
    kind = rng.choice(sorted(STYLES))
    style = rng.choice(STYLES[kind])
    skirts = kind in ("woman", "girl")
    return Person(
        kind=kind,
        skin=rng.choice(sorted(SKINS)),
        hair=rng.choice([h for h in HAIRS if h != "grey" or kind in ("woman", "man")]),
        style=style,
        top=rng.choice(sorted(CLOTHES)),
        pattern=rng.choice(("", "", "striped", "dotted")),
        bottom=rng.choice(sorted(BOTTOMS)),
        wear=rng.choice(("trousers", "dress", "skirt") if skirts else ("trousers", "shorts")),
        long_sleeves=rng.random() < 0.5,
        mood=rng.choice(MOODS),
        eyes=rng.choice(EYES),
        glasses=rng.random() < 0.15,
        beard=kind == "man" and rng.random() < 0.35,
        tilt=rng.uniform(-7, 7),
        behind=behind,
        arms=arms,
        bends=(rng.uniform(-1, 1), rng.uniform(-1, 1)),
        hand=rng.uniform(0.98, 1.1),
    )


def _step(start: Point, angle: float, side: int, length: float) -> Point:
    a = math.radians(angle)
    return start[0] + side * length * math.sin(a), start[1] + length * math.cos(a)


def arm_joints(person: Person, side: int) -> tuple[Point, Point, Point, float]:
    """Return shoulder, elbow, wrist and the hand's angle."""
    index = 0 if side < 0 else 1
    pose, bend = ARMS[person.arms[index]], person.bends[index]
    loose = 4.0 if pose.shown else 1.0
    shoulder = (side * SHOULDER[0], SHOULDER[1])
    elbow = _step(shoulder, pose.upper + loose * bend, side, UPPER)
    wrist = _step(elbow, pose.fore + loose * bend, side, FORE)
    return shoulder, elbow, wrist, pose.hand + 2 * loose * bend


def reach(person: Person) -> tuple[float, float]:
    """Return how far the visible hands go up and to the side, with a little room."""
    top, wide = -1.42, 0.9
    for side, name in zip((-1, 1), person.arms, strict=True):
        if ARMS[name].shown and name != "chest":
            *_, wrist, angle = arm_joints(person, side)
            tip = _step(wrist, angle, side, 0.72 * person.hand)
            spread = 0.3 * abs(math.cos(math.radians(angle)))
            wide = max(wide, side * tip[0] + spread + 0.05)
            top = min(top, tip[1] - 0.05)
    return top, wide


def _paint_hand(
    canvas: Canvas, view: View, thumb: int, palm: bool, skin: Color, label: int
) -> list[Point]:
    """Paint a hand that points up from the wrist; return the five finger tips on the canvas."""
    shape = [(-0.09, 0.0), (-0.165, -0.16), (-0.16, -0.32), (-0.05, -0.39), (0.06, -0.4),
             (0.165, -0.34), (0.15, -0.14), (0.09, 0.0)]  # fmt: skip
    parts: list[Polygon] = [smooth(mirrored(shape, thumb))]
    tips: list[Point] = []
    nails: list[Polygon] = []
    for across, along, angle, length, radius in FINGERS:
        base = (thumb * across, -along)
        a = math.radians(angle)
        u, v = thumb * math.sin(a), -math.cos(a)
        tip = (base[0] + length * u, base[1] + length * v)
        parts.append(capsule(base, tip, radius, radius * 0.92))
        tips.append(view.at(tip))
        nails.append(ellipse(tip[0] + 0.008 * u, tip[1] + 0.008 * v, radius * 0.5, radius * 0.55))
    canvas.blob(view, parts, skin, label, 0.02, shade(skin, 0.62))
    if palm:
        crease = shade(skin, 0.22)
        canvas.stroke(view, ellipse(thumb * 0.15, -0.14, 0.13, 0.14, 110, 250) if thumb > 0
                      else ellipse(-0.15, -0.14, 0.13, 0.14, -70, 70), 0.022, crease)  # fmt: skip
    else:
        canvas.blob(view, nails, mix(skin, (255, 225, 225), 0.55), None, 0)
    return tips


def _paint_arm(canvas: Canvas, view: View, person: Person, side: int, label: int) -> list[Point]:
    name = person.arms[0 if side < 0 else 1]
    pose = ARMS[name]
    skin, top = SKINS[person.skin], CLOTHES[person.top]
    shoulder, elbow, wrist, angle = arm_joints(person, side)
    tips: list[Point] = []
    if pose.shown:
        own_right = (side < 0) != person.behind
        palm = pose.palm != person.behind
        frame = view.inner(wrist, turn=180 - side * angle, scale=person.hand)
        tips = _paint_hand(canvas, frame, 1 if own_right == palm else -1, palm, skin, label)
    bones = [capsule(shoulder, elbow, 0.155, 0.125), capsule(elbow, wrist, 0.12, 0.095)]
    canvas.blob(view, bones, top if person.long_sleeves else skin)
    if not person.long_sleeves:
        cuff = (shoulder[0] + 0.62 * (elbow[0] - shoulder[0]),
                shoulder[1] + 0.62 * (elbow[1] - shoulder[1]))  # fmt: skip
        canvas.blob(view, [capsule(shoulder, cuff, 0.165, 0.16)], top)
    if name == "pocket":
        cloth = _lower_color(person)
        x, y = wrist
        pocket = [(x - side * 0.2, y - 0.04), (x + side * 0.13, y - 0.1), (x + side * 0.1, y + 0.3),
                  (x - side * 0.2, y + 0.28)]  # fmt: skip
        canvas.blob(view, [smooth(pocket, 1)], cloth)
    return tips


def _lower_color(person: Person) -> Color:
    return CLOTHES[person.top] if person.wear == "dress" else BOTTOMS[person.bottom]


def _paint_body(canvas: Canvas, view: View, person: Person) -> None:
    skin, top, low = SKINS[person.skin], CLOTHES[person.top], _lower_color(person)
    feet = person.knees
    bare = person.wear in ("shorts", "dress", "skirt")
    for side in (-1, 1):
        hip, foot = (side * 0.21, 1.3), (side * 0.26, feet)
        canvas.blob(view, [capsule(hip, foot, 0.23, 0.14)], skin if bare else low)
        shoe = capsule((side * 0.24, feet + 0.1), (side * 0.42, feet + 0.12), 0.13, 0.11)
        canvas.blob(view, [shoe], (70, 55, 70) if person.kind != "girl" else (215, 60, 90))
        if person.wear == "shorts":
            canvas.blob(view, [capsule(hip, (side * 0.26, 1.85), 0.24, 0.23)], low)
    if person.wear in ("skirt", "dress"):
        flare = [(-0.4, 1.1), (0.4, 1.1), (0.68, 2.0), (0.3, 2.06), (-0.3, 2.06), (-0.68, 2.0)]
        canvas.blob(view, [smooth(flare, 1)], low)
    else:
        canvas.blob(view, [smooth([(-0.44, 1.0), (0.44, 1.0), (0.46, 1.5), (-0.46, 1.5)], 1)], low)
    torso = smooth([(-0.3, 0.0), (0.3, 0.0), (0.62, 0.12), (0.5, 0.6), (0.46, 1.32), (-0.46, 1.32),
                    (-0.5, 0.6), (-0.62, 0.12)])  # fmt: skip
    canvas.blob(view, [torso], top)
    ink = (255, 255, 255) if person.top != "white" else (90, 140, 220)
    if person.pattern == "striped":
        for y in (0.42, 0.66, 0.9, 1.14):
            canvas.stroke(view, [(-0.38, y), (0.38, y)], 0.09, mix(top, ink, 0.75))
    elif person.pattern == "dotted":
        dots = [
            (x + 0.12 * (row % 2), 0.4 + 0.22 * row)
            for row in range(4)
            for x in (-0.3, -0.06, 0.18)
        ]
        canvas.blob(view, [ellipse(x, y, 0.05, 0.05) for x, y in dots], mix(top, ink, 0.8), None, 0)
    canvas.blob(view, [capsule((0, -0.2), (0, 0.06), 0.15, 0.17)], skin)


def _hair_behind(person: Person) -> list[Polygon]:
    """Return the hair that hangs behind the body (before it, for a person seen from behind)."""
    style = person.style
    if style == "long":
        half = [(0.4, -0.5), (0.6, 0.1), (0.62, 0.95), (0.3, 1.05)]
    elif style == "bob":
        half = [(0.4, -0.5), (0.6, 0.0), (0.58, 0.42)]
    elif style == "headscarf":
        half = [(0.45, -0.5), (0.56, 0.1), (0.6, 0.75)]
    elif style == "curly":
        ring = [math.radians(a) for a in range(150, 391, 30)]
        return [ellipse(0.44 * math.cos(a), 0.44 * math.sin(a) - 0.1, 0.2, 0.2) for a in ring]
    elif style == "bun":
        return [ellipse(0, -0.58, 0.2, 0.18)]
    elif style == "ponytail":
        return [capsule((0.34, -0.28), (0.56, 0.42), 0.16, 0.12)]
    elif style == "pigtails":
        return [capsule((s * 0.44, -0.1), (s * 0.6, 0.42), 0.12, 0.14) for s in (-1, 1)]
    else:
        return []
    return [smooth(half + mirrored(half)[::-1])]


def _spikes() -> Polygon:
    """Return the zigzag of spiky hair over the crown."""
    angles = [math.radians(a) for a in range(185, 361, 25)]
    roots = [(0.45 * math.cos(a), 0.5 * math.sin(a) - 0.03) for a in angles]
    zigzag: Polygon = []
    for (ax, ay), (bx, by) in pairwise(roots):
        zigzag += [(ax, ay), (0.62 * (ax + bx), 0.62 * (ay + by))]
    line = [(0.4, -0.16), (0.25, -0.28), (0.1, -0.22), (-0.08, -0.3), (-0.24, -0.22), (-0.4, -0.16)]
    return [*zigzag, roots[-1], *line]


# The right half of each hairline, from the temple to the middle; the left half mirrors it.
HAIRLINES: dict[str, list[Point]] = {
    "short": [(0.42, -0.12), (0.36, -0.24), (0.0, -0.3)],
    "bob": [(0.44, 0.12), (0.38, -0.2), (0.0, -0.22)],
    "long": [(0.45, 0.16), (0.34, -0.14), (0.02, -0.42)],
    "pigtails": [(0.43, 0.0), (0.3, -0.22), (0.02, -0.4)],
}


def _hair_front(person: Person) -> list[Polygon]:
    """Return the hair that falls over the forehead."""
    if person.style == "bald":
        return []
    if person.style == "spiky":
        return [_spikes()]
    if person.style == "curly":
        curls = ((-0.36, -0.24), (-0.2, -0.36), (0.0, -0.39), (0.2, -0.36), (0.36, -0.24))
        top = smooth([(-0.42, -0.24), (-0.34, -0.5), (0.34, -0.5), (0.42, -0.24), (0.0, -0.38)])
        return [top, *(ellipse(x, y, 0.13, 0.11) for x, y in curls)]
    if person.style == "headscarf":
        rim = ellipse(0, 0.02, 0.36, 0.43, 360, 0)
        return [[*ellipse(0, 0, 0.47, 0.56), (0.47, 0.0), *rim], ellipse(0, 0.62, 0.38, 0.17)]
    crown = ellipse(0, -0.03, 0.46, 0.53, 180, 360)
    if person.style == "parted":
        right = [(0.43, -0.02), (0.36, -0.2), (-0.1, -0.3)]
        return [[*crown, *right, (-0.25, -0.36), (-0.38, -0.2), (-0.43, -0.02)]]
    half = HAIRLINES.get(person.style, HAIRLINES["short"])
    return [crown + half + mirrored(half)[::-1]]


def _paint_face(canvas: Canvas, view: View, person: Person, label: int) -> None:
    skin, hair = SKINS[person.skin], HAIRS[person.hair]
    ink = shade(skin, 0.8)
    for side in (-1, 1):
        canvas.blob(view, [ellipse(side * 0.41, 0.02, 0.08, 0.11)], skin)
    canvas.blob(view, [ellipse(0, 0, 0.41, 0.5)], skin, label)
    if person.beard:
        beard = [*ellipse(0, 0.02, 0.4, 0.47, 0, 180), (-0.28, 0.1), (0, 0.17), (0.28, 0.1)]
        canvas.blob(view, [smooth(beard, 1)], hair, None, 0)
    wide = {"surprised": 1.2, "laughing": 0.9}.get(person.mood, 1.0)
    for side in (-1, 1):
        cheek = mix(skin, (235, 70, 80), 0.3)
        if not person.beard:
            canvas.blob(view, [ellipse(side * 0.27, 0.17, 0.075, 0.055)], cheek, None, 0)
        x, y = side * 0.165, -0.02
        canvas.blob(view, [ellipse(x, y, 0.088, 0.105 * wide)], (255, 255, 255), None, 0.014, ink)
        canvas.blob(view, [ellipse(x, y + 0.01, 0.06, 0.068)], person.eyes, None, 0)
        canvas.blob(view, [ellipse(x, y + 0.01, 0.032, 0.038)], (15, 12, 18), None, 0)
        canvas.blob(view, [ellipse(x + 0.02, y - 0.02, 0.018, 0.018)], (255, 255, 255), None, 0)
        lift = {"surprised": -0.06, "sad": -0.02}.get(person.mood, -0.035)
        slope = {"sad": 0.07, "calm": 0.0}.get(person.mood, 0.015)
        brow = [(x - side * 0.09, -0.165 + lift - slope), (x, -0.19 + lift),
                (x + side * 0.09, -0.165 + lift + slope)]  # fmt: skip
        canvas.stroke(view, brow, 0.042, shade(hair, 0.35))
        if person.glasses:
            ring = ellipse(x, y, 0.13, 0.135)
            canvas.stroke(view, ring, 0.026, (45, 40, 60))
    if person.glasses:
        canvas.stroke(view, [(-0.04, -0.03), (0.04, -0.03)], 0.026, (45, 40, 60))
    canvas.stroke(view, ellipse(0, 0.09, 0.045, 0.045, -10, 150), 0.03, shade(skin, 0.4))
    # On a dark ground, a mouth is only readable when it is lighter than what is around it.
    bright = person.beard or person.skin in ("brown", "dark")
    _paint_mouth(canvas, view, person.mood, (240, 112, 112) if bright else (190, 45, 58))


def _paint_mouth(canvas: Canvas, view: View, mood: str, lips: Color) -> None:
    if mood == "smiling":
        canvas.stroke(view, ellipse(0, 0.2, 0.16, 0.11, 12, 168), 0.045, lips)
    elif mood == "laughing":
        canvas.blob(view, [ellipse(0, 0.22, 0.17, 0.16, 0, 180)], (120, 20, 36), None, 0.018, lips)
        canvas.blob(view, [ellipse(0, 0.345, 0.085, 0.035)], (235, 110, 120), None, 0)
        canvas.blob(view, [[(-0.14, 0.22), (0.14, 0.22), (0.12, 0.265), (-0.12, 0.265)]],
                    (255, 255, 255), None, 0)  # fmt: skip
    elif mood == "surprised":
        canvas.blob(view, [ellipse(0, 0.29, 0.075, 0.095)], (135, 25, 40), None, 0.018, lips)
    elif mood == "sad":
        canvas.stroke(view, ellipse(0, 0.36, 0.13, 0.1, 200, 340), 0.045, lips)
    else:
        canvas.stroke(view, [(-0.11, 0.27), (0.11, 0.27)], 0.045, lips)


def paint_person(
    canvas: Canvas, view: View, person: Person, face: int, hands: tuple[int, int]
) -> dict[int, list[Point]]:
    """Paint the person with these labels; return the finger tips of each painted hand by label."""
    head = view.inner((0, -0.62), turn=person.tilt)
    hair = CLOTHES[scarf_color(person)] if person.style == "headscarf" else HAIRS[person.hair]
    locks = _hair_behind(person)
    # Whatever is behind the body is painted first; from behind, the hair is what is nearest.
    if not person.behind:
        canvas.blob(head, locks, hair)
    for side, name in zip((-1, 1), person.arms, strict=True):
        if name == "back":
            _paint_arm(canvas, view, person, side, 0)
    _paint_body(canvas, view, person)
    if person.behind:
        for side in (-1, 1):
            canvas.blob(head, [ellipse(side * 0.41, 0.02, 0.08, 0.11)], SKINS[person.skin])
        skull = ellipse(0, -0.02, 0.44, 0.52)
        canvas.blob(head, [skull, *locks], SKINS[person.skin] if person.style == "bald" else hair)
        if person.style in ("bun", "ponytail", "pigtails"):
            for x in (-0.2, 0.0, 0.2):
                canvas.stroke(head, [(x, -0.4), (x * 1.3, 0.3)], 0.025, shade(hair, 0.3))
    else:
        _paint_face(canvas, head, person, face)
        canvas.blob(head, _hair_front(person), hair)
    tips: dict[int, list[Point]] = {}
    # A hand on the chest comes last: it lies over the other arm.
    arms = list(zip((-1, 1), person.arms, hands, strict=True))
    for side, name, label in sorted(arms, key=lambda arm: arm[1] == "chest"):
        if name != "back":
            tips[label] = _paint_arm(canvas, view, person, side, label)
    return {label: points for label, points in tips.items() if points}


def _article(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words


def describe_looks(person: Person, head: bool, legs: bool) -> str:
    """Return the words for who it is and what it wears, naming only what the frame shows."""
    hair = {
        "bald": "a bald head",
        "bun": f"{person.hair} hair in a bun",
        "ponytail": f"{_article(person.hair)} ponytail",
        "pigtails": f"{person.hair} pigtails",
        "headscarf": f"{_article(scarf_color(person))} headscarf",
        "spiky": f"spiky {person.hair} hair",
        "bob": f"{person.hair} hair in a bob",
        "parted": f"short parted {person.hair} hair",
    }.get(person.style, f"{person.style} {person.hair} hair")
    traits = [f"{person.skin} skin"]
    if head:
        traits.append(hair)
        if not person.behind:
            traits += ["a beard"] * person.beard + ["glasses"] * person.glasses
    listed = " and ".join(filter(None, (", ".join(traits[:-1]), traits[-1])))
    text = f"{_article(person.kind)} with {listed}"
    pattern = f"{person.pattern} " if person.pattern else ""
    if person.wear == "dress":
        return f"{text} in {_article(f'{pattern}{person.top} dress')}"
    text += f" in {_article(f'{pattern}{person.top} shirt')}"
    if legs:
        lower = f"{person.bottom} {person.wear}"
        text += f" and {_article(lower) if person.wear == 'skirt' else lower}"
    return text


def scarf_color(person: Person) -> str:
    """Return the name of the headscarf's colour."""
    return person.bottom if person.bottom in CLOTHES else "purple"


def describe_arms(person: Person, brief: bool = False) -> str:
    """Return the words for what the two arms do (brief: the more telling one)."""
    first, second = person.arms
    if first == second:
        return ARMS[first].both
    names = ("left", "right") if person.behind else ("right", "left")
    told = [(arm, ARMS[arm].one.format(name)) for arm, name in zip(person.arms, names, strict=True)]
    # An arm that acts is told before a hand on the chest, and that before one that hangs or hides.
    quiet = {"chest": 1, "down": 2, "pocket": 3, "back": 3}
    told.sort(key=lambda pair: quiet.get(pair[0], 0))
    return told[0][1] if brief else " and ".join(words for _, words in told)
