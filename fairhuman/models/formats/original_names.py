"""How a transformer's names in diffusers' layout become those of the file that was released.

There, some layers are several of diffusers' in one, whose outputs follow one another.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from fairhuman.common.errors import UserError
from fairhuman.models.formats.weights import Source, changed, joined

_BLOCK = re.compile(r"(\w+)\.(\d+)\.(.+)")


class Place(NamedTuple):
    """Where a tensor of diffusers' layout is in the released file."""

    name: str
    """Of the tensor there, without the file's prefix."""
    part: int | None = None
    """Which of the parts that are joined there; None: it is the whole."""
    shares: tuple[int, ...] = ()
    """How the joined parts share its rows."""
    swapped: bool = False
    """Whether its halves change places: scale and shift are shift and scale there."""


@dataclass(frozen=True)
class Stack:
    """A list of equal blocks, or what is outside of all blocks."""

    original: str = ""
    """Its name in the released file; empty: outside."""
    names: Mapping[str, str] = field(default_factory=dict)
    """By diffusers' names of layers, or of tensors where the end of the name differs."""
    joined: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """By the released names: diffusers' layers in it, in their order, and their shares of rows."""
    swapped: frozenset[str] = frozenset()
    """Layers whose halves change places, by diffusers' names."""
    swapped_in_last: frozenset[str] = frozenset()
    """Those that do so in the last block alone."""

    def place(self, tensor: str, last: bool) -> Place | None:
        """Return where a tensor of a block is, None if this is no name of one."""
        if tensor in self.names:
            return Place(self.names[tensor])
        layer, _, end = tensor.rpartition(".")
        if layer in self.names:
            swapped = layer in self.swapped or (last and layer in self.swapped_in_last)
            return Place(f"{self.names[layer]}.{end}", swapped=swapped)
        for name, parts in self.joined.items():
            if layer in parts:
                return Place(f"{name}.{end}", [*parts].index(layer), tuple(parts.values()))
        return None


@dataclass(frozen=True)
class Original:
    """The released layout of a family's transformer."""

    name: str
    """The family's."""
    architecture: str
    """What ModelSpec calls it."""
    outside: Stack
    blocks: Mapping[str, Stack]
    """By diffusers' names."""
    guided: str = ""
    """What ModelSpec calls those that guidance was distilled into; empty: there are none."""
    prefix: str = ""
    """Of all names in the file."""

    def architecture_of(self, config: Mapping[str, Any]) -> str:
        """Return what ModelSpec calls the model of which this is the transformer's config."""
        return self.guided if self.guided and config.get("guidance_embeds") else self.architecture

    def place(self, tensor: str, blocks: Mapping[str, int] | None = None) -> Place | None:
        """Return where a tensor is, None if this is no name of one.

        Args:
            tensor: its name in diffusers' layout.
            blocks: how many each stack has; None: it is not one of a stack's last.
        """
        found = _BLOCK.fullmatch(tensor)
        if not found or found[1] not in self.blocks:
            return self.outside.place(tensor, last=False)
        stack, index = self.blocks[found[1]], int(found[2])
        place = stack.place(found[3], last=index + 1 == (blocks or {}).get(found[1]))
        return place and place._replace(name=f"{stack.original}.{index}.{place.name}")

    def layer(self, name: str) -> Place | None:
        """Return where a linear layer is, by the name of a layer; None if it is not known."""
        place = self.place(f"{name}.weight")
        return place and place._replace(name=place.name.removesuffix(".weight"))

    def tensors(self, tensors: Mapping[str, Source]) -> dict[str, Source]:
        """Return a whole transformer's tensors by their names in the released file.

        Args:
            tensors: by diffusers' names, all that its config asks for.

        Raises:
            UserError: one has no place there.
        """
        count: dict[str, int] = {}
        for name in tensors:
            if block := _BLOCK.fullmatch(name):
                count[block[1]] = max(count.get(block[1], 0), int(block[2]) + 1)
        found: dict[str, Source] = {}
        parts: dict[str, dict[int, Source]] = {}
        for name, part in tensors.items():
            place = self.place(name, count)
            if place is None:
                raise UserError(f"{name} has no place in the file that {self.name} was released as")
            if place.part is not None:
                parts.setdefault(self.prefix + place.name, {})[place.part] = part
            else:
                found[self.prefix + place.name] = _swapped(part) if place.swapped else part
        whole = {name: joined([each[i] for i in range(len(each))]) for name, each in parts.items()}
        return found | whole


def _swapped(part: Source) -> Source:
    return changed(part, part.shape, lambda tensor: tensor.roll(tensor.shape[0] // 2, 0))
