"""Fill the cache of a run before it starts: all ranks together, what is missing alone."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from fairhuman.common.distributed import agreed, gathered, shared
from fairhuman.common.errors import ConfigError
from fairhuman.common.output_folder import filling
from fairhuman.common.units import GIB
from fairhuman.data.cache import Cache, is_whole, write
from fairhuman.data.dataset import People
from fairhuman.data.index.digests import image_digests
from fairhuman.data.index.records import Records
from fairhuman.data.order import Draw
from fairhuman.data.workers import from_workers
from fairhuman.models.families.protocol import Family, Frozen


class Wanted(NamedTuple):
    """Samples that a run will ask for."""

    people: People
    draws: Iterable[Draw]


class _Latents(NamedTuple):
    part: int
    """Which of the `Wanted`."""
    draw: Draw
    size: tuple[int, int]


class _Files(NamedTuple):
    """What a run asks for, by its file."""

    latents: dict[Path, _Latents]
    captions: dict[Path, str | None]


def open_cache(folder: Path, records: Records, family: Family, check: str) -> Cache:
    """Return the cache in a folder, of these records under this model; a collective.

    Args:
        folder: `data.cache`.
        records: of the run.
        family: its frozen models.
        check: `data.check`, of files that were read before.
    """
    images = image_digests(records, check)
    text = None if family.trains_text else digest_of(family.frozen_text)
    return Cache(folder, digest_of(family.frozen_vae), text, family.prompt_type, images)


def fill(
    cache: Cache,
    wanted: Sequence[Wanted],
    family: Family,
    device: torch.device,
    *,
    workers: int,
    say: Callable[[str], None] | None,
) -> None:
    """Build what the cache lacks of what a run will ask for; a collective.

    Args:
        cache: of the records that the draws are of.
        wanted: the same on all ranks.
        family: its frozen models.
        device: this rank's, where they go while they work.
        workers: processes per rank that read images.
        say: told what there is and what is built; None on all ranks but one.

    Raises:
        ConfigError: the disk has no room.
        OutputError: a file cannot be written.
    """
    files = _files(cache, wanted)
    if say:
        kept = (
            f"and {len(files.captions)} captions"
            if cache.text
            else "(captions are encoded in each step)"
        )
        said = f"data.cache: {len(files.latents)} latents {kept} in {cache.folder}"
    if not _lacking(files):
        if say:
            say(f"{said}, 0 of them to build")
        return
    with filling(cache.folder, say):
        lacking = _lacking(files)  # again: another run may have built them meanwhile
        latents = {path: made for path, made in files.latents.items() if path in lacking}
        captions = {path: caption for path, caption in files.captions.items() if path in lacking}
        needed = sum(family.moments_bytes(made.size) for made in latents.values())
        needed += family.prompt_bytes() * len(captions)
        agreed(lambda: _check_room(cache.folder, needed))
        if say:
            say(f"{said}, {len(lacking)} of them to build ({needed / GIB:.2f} GiB)")
        mine = slice(dist.get_rank(), None, dist.get_world_size())
        texts = {path: captions[path] for path in sorted(captions)[mine]}
        images = _Images(wanted, {path: latents[path] for path in sorted(latents)[mine]})
        with family.encoders_on(device):
            agreed(lambda: _build(texts, images, family, workers, show=say is not None))


def _lacking(files: _Files) -> set[Path]:
    paths = sorted([*files.latents, *files.captions])
    return {path for path, whole in zip(paths, shared(_are_whole, paths), strict=True) if not whole}


def _build(
    texts: Mapping[Path, str | None], images: _Images, family: Family, workers: int, show: bool
) -> None:
    """Build this rank's part."""
    with tqdm(total=len(texts) + len(images), desc="data.cache", disable=not show) as bar:
        for path, caption in texts.items():
            write(path, family.encode_captions([caption]))
            bar.update()
        loader = DataLoader(images, batch_size=None, num_workers=workers)
        for path, pixels in from_workers(loader):
            write(path, family.posterior(pixels))
            bar.update()


def digest_of(frozen: Frozen) -> str:
    """Return a digest of all that an encoder's results depend on besides its input."""
    text = json.dumps(dict(frozen.settings), sort_keys=True)
    digest = hashlib.blake2b(text.encode(), digest_size=20)
    for model in frozen.models:
        digest.update(repr(model).encode())  # its layers and their settings
        for name, tensor in sorted(model.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _files(cache: Cache, wanted: Sequence[Wanted]) -> _Files:
    """Return all files that the draws ask for; every rank goes through a part of the draws."""
    found = _Files({}, {})
    for other in gathered(lambda: _files_of_rank(cache, wanted)):
        found.latents.update(other.latents)
        found.captions.update(other.captions)
    return found


def _files_of_rank(cache: Cache, wanted: Sequence[Wanted]) -> _Files:
    found = _Files({}, {})
    for part, (people, draws) in enumerate(wanted):
        for draw in islice(draws, dist.get_rank(), None, dist.get_world_size()):
            record, placement, caption = people.drawn(draw)
            path = cache.posterior_path(record, placement)
            found.latents[path] = _Latents(part, draw, placement.size)
            if cache.text:
                found.captions[cache.prompt_path(caption)] = caption
    return found


def _are_whole(paths: Sequence[Path]) -> list[bool]:
    with ThreadPoolExecutor() as pool:
        return list(pool.map(is_whole, paths))


class _Images(Dataset[tuple[Path, Tensor]]):
    """The images of latents to build, as batches of one."""

    def __init__(self, wanted: Sequence[Wanted], latents: Mapping[Path, _Latents]) -> None:
        self.wanted = [part.people for part in wanted]
        self.latents = list(latents.items())

    def __len__(self) -> int:
        return len(self.latents)

    def __getitem__(self, index: int) -> tuple[Path, Tensor]:
        path, (part, draw, _) = self.latents[index]
        record, placement, _ = self.wanted[part].drawn(draw)
        return path, self.wanted[part].pixels(record, placement)


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ConfigError(
            f"data.cache = {str(folder)!r}: needs {needed / GIB:.2f} GiB more, and its disk has "
            f"{free / GIB:.2f}; use another disk, data.crop=center (one crop per image), or no "
            "cache"
        )
