"""One drawn picture: who is in it, how it is framed, its masks, boxes and caption."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageChops

from fairhuman.common.masks import extent
from fairhuman.demo.drawn.canvas import OVERSAMPLING, Canvas, Point, View
from fairhuman.demo.drawn.figure import (
    ARMS,
    Person,
    choose_person,
    describe_arms,
    describe_looks,
    paint_person,
    reach,
)
from fairhuman.demo.drawn.scene import draw_scene

Box = tuple[int, int, int, int]

# How far down each framing goes, in heads below the shoulders; None is down to the feet.
FRAMINGS: dict[str, float | None] = {"full": None, "knees": 2.34, "waist": 1.36, "close": 0.95}
FRAMING_WORDS = {
    "full": "a full-length drawing",
    "knees": "a drawing from the knees up",
    "waist": "a drawing from the waist up",
    "close": "a close-up drawing",
    "headless": "a drawing from the neck down",
}
# Pairs of arms whose hands lie wholly inside the framing, or wholly outside it.
POSES: dict[str, tuple[tuple[str, str], ...]] = {
    "full": (("down", "down"), ("wave", "down"), ("wave", "wave"), ("up", "up"), ("out", "out"),
             ("chest", "down"), ("up", "down"), ("wave", "pocket")),
    "knees": (("down", "down"), ("wave", "down"), ("wave", "wave"), ("up", "up"), ("chest", "down"),
              ("wave", "chest"), ("wave", "pocket")),
    "waist": (("wave", "wave"), ("wave", "wave"), ("wave", "down"), ("wave", "chest"), ("up", "up"),
              ("wave", "back"), ("chest", "down")),
    "close": (("near", "near"), ("near", "near"), ("near", "down"), ("near", "back")),
    "headless": (("down", "down"), ("chest", "down"), ("chest", "pocket"), ("down", "pocket")),
}  # fmt: skip
HIDDEN: dict[str, tuple[tuple[str, str], ...]] = {
    "full": (("pocket", "pocket"), ("back", "back")),
    "knees": (("pocket", "pocket"), ("back", "back")),
    "waist": (("back", "back"), ("down", "down")),
    "close": (("down", "down"), ("back", "back")),
    "headless": (("pocket", "pocket"), ("back", "back")),
}
SHARE_BEHIND, SHARE_HEADLESS, SHARE_HIDDEN, SHARE_PAIR = 0.07, 0.04, 0.13, 0.09


@dataclass(frozen=True)
class DrawnSample:
    """A picture with its annotations; `fingertips` has the five tips (thumb first) of each hand."""

    image: Image.Image
    text: str
    faces: list[Box]
    hands: list[Box]
    face_mask: Image.Image
    hand_mask: Image.Image
    framing: str
    fingertips: list[list[Point]] = field(default_factory=list)


def bounds(mask: Image.Image) -> Box | None:
    """Return the tight box [x, y, w, h] of the pixels that are at least half covered."""
    return extent(np.asarray(mask) >= 128)


def least_side(size: int) -> int:
    """Return the least side of a region that counts as one, in pixels of a picture of this size."""
    return max(3, round(size / 32))


def _collect(canvas: Canvas, labels: list[int]) -> tuple[dict[int, Box], Image.Image]:
    """Return the boxes of the labels that can be seen, and one mask of them all."""
    least = least_side(canvas.size)
    boxes: dict[int, Box] = {}
    union = Image.new("L", (canvas.size, canvas.size), 0)
    for label in labels:
        mask = canvas.mask(label)
        box = bounds(mask)
        if box is not None and min(box[2:]) >= least:
            boxes[label] = box
            union = ImageChops.lighter(union, mask)
    return boxes, union


def _pick_pose(rng: random.Random, framing: str, behind: bool, hidden: bool) -> tuple[str, str]:
    pairs = (HIDDEN if hidden else POSES)[framing]
    if behind:
        # A hand on the chest cannot be seen from behind, one on the back could be.
        pairs = tuple(pair for pair in pairs if not {"chest", "back"} & set(pair))
    first, second = rng.choice(pairs)
    return (first, second) if rng.random() < 0.5 else (second, first)


def _place(rng: random.Random, person: Person, framing: str) -> View:
    """Return where the person stands so that the head and the hands are inside the frame."""
    top, wide = reach(person)
    if framing == "headless":
        top, bottom = -0.04, 2.42
    else:
        floor = FRAMINGS[framing]
        bottom = person.knees + 0.35 if floor is None else floor
    scale = min(1 / (bottom - top), 0.48 / wide) * rng.uniform(0.95, 1.0)
    x, lean = 0.5, rng.uniform(-2, 2)
    if framing == "headless":
        # What is cut off is the head: the top edge is fixed, and nothing may lean back into it.
        return View(x + rng.uniform(-0.02, 0.02), -top * scale, scale, 0.0)
    y = 0.98 - (person.knees + 0.25) * scale if framing == "full" else 1 - bottom * scale
    return View(x + rng.uniform(-0.015, 0.015), y, scale, lean)


def _place_pair(rng: random.Random, people: tuple[Person, Person]) -> list[View]:
    """Return places side by side, of one scale, for two people seen in full."""
    tall = max(person.knees for person in people)
    wide = max(reach(person)[1] for person in people)
    scale = min(0.95 / (tall + 0.3 + 1.4), 0.27 / wide) * rng.uniform(0.97, 1.0)
    return [
        View(x, 0.97 - (person.knees + 0.25) * scale, scale)
        for x, person in zip((0.27, 0.73), people, strict=True)
    ]


def _arm_words(person: Person, any_hand: bool) -> str:
    words = describe_arms(person)
    if not any_hand and any(ARMS[arm].shown for arm in person.arms):
        words += ", the hands out of the picture"
    return words


def _seen(canvas: Canvas, spot: View, scale: float) -> View:
    """Return a place in the unit frame on the canvas, smaller by `scale` and at the bottom."""
    x, y, side = 0.5 + scale * (spot.x - 0.5), 1 + scale * (spot.y - 1), canvas.side
    return View(x * side, y * side, scale * spot.scale * side, spot.turn)


def draw_person(
    rng: random.Random, size: int = 128, scale: float = 1.0, hands: bool = True
) -> DrawnSample:
    """Draw one picture of a person, or now and then of two.

    Args:
        rng: of all choices, which depend on neither size nor scale.
        size: side of the picture, in pixels.
        scale: of the people, up to 1; the place behind them stays.
        hands: whether hands may be seen; without, there is one person.
    """
    canvas = Canvas(size)
    place = draw_scene(canvas, rng)
    if rng.random() < SHARE_PAIR and hands:
        return _draw_pair(canvas, rng, place, scale)
    behind, headless = rng.random() < SHARE_BEHIND, rng.random() < SHARE_HEADLESS
    hidden = rng.random() < SHARE_HIDDEN or not hands
    framing = rng.choice(("full", "full", "knees", "waist", "waist", "close", "close"))
    if behind:
        framing = rng.choice(("full", "knees"))
    elif headless:
        framing = "headless"
    person = choose_person(rng, _pick_pose(rng, framing, behind, hidden), behind)
    view = _seen(canvas, _place(rng, person, framing), scale)
    tips = paint_person(canvas, view, person, 1, (2, 3))
    faces, face_mask = _collect(canvas, [1])
    shown, hand_mask = _collect(canvas, [2, 3])
    words = [
        f"{FRAMING_WORDS[framing]} of "
        + describe_looks(person, framing != "headless", framing in ("full", "knees", "headless"))
    ]
    if behind:
        words.append("seen from behind")
    elif framing == "headless":
        words.append("the head out of the picture")
    else:
        words.append(person.mood)
    words += [_arm_words(person, bool(shown)), place]
    return _finish(canvas, ", ".join(words), faces, shown, face_mask, hand_mask, framing, tips)


def _draw_pair(canvas: Canvas, rng: random.Random, place: str, scale: float) -> DrawnSample:
    outer = ("wave", "wave", "down")
    inner = ("down", "chest", "pocket")
    left = choose_person(rng, (rng.choice(outer), rng.choice(inner)), False)
    right = choose_person(rng, (rng.choice(inner), rng.choice(outer)), False)
    tips: dict[int, list[Point]] = {}
    for k, (spot, person) in enumerate(
        zip(_place_pair(rng, (left, right)), (left, right), strict=True)
    ):
        view = _seen(canvas, spot, scale)
        tips.update(paint_person(canvas, view, person, 1 + 3 * k, (2 + 3 * k, 3 + 3 * k)))
    faces, face_mask = _collect(canvas, [1, 4])
    hands, hand_mask = _collect(canvas, [2, 3, 5, 6])
    told = [
        f"{describe_looks(person, True, False)}, {person.mood}, {describe_arms(person, brief=True)}"
        for person in (left, right)
    ]
    text = f"a drawing of two people: {told[0]}; and {told[1]}; {place}"
    return _finish(canvas, text, faces, hands, face_mask, hand_mask, "pair", tips)


def _finish(
    canvas: Canvas,
    text: str,
    faces: dict[int, Box],
    hands: dict[int, Box],
    face_mask: Image.Image,
    hand_mask: Image.Image,
    framing: str,
    tips: dict[int, list[Point]],
) -> DrawnSample:
    shown = [[(x / OVERSAMPLING, y / OVERSAMPLING) for x, y in tips[label]] for label in hands]
    return DrawnSample(
        image=canvas.picture(),
        text=text,
        faces=list(faces.values()),
        hands=list(hands.values()),
        face_mask=face_mask,
        hand_mask=hand_mask,
        framing=framing,
        fingertips=shown,
    )
