"""A GPU that is not there, which notes where the host waits for it and how tensors get to it.

Its tensors have a shape, a type and no numbers (torch's fake tensors, on a device of the kind that
extensions of torch add); those of the host are real. What comes back from it is made up: integers
count from 0, all others are 1. As a real GPU it has a queue: what the host gives it is done at some
time, and what the host has waited for is done, with all that was given before.

What torch does on a GPU within one of its operations is not seen, but for indices. The device stays
in the process, so what uses it runs in one of its own.
"""

from __future__ import annotations

import linecache
import os
import sys
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "fakegpu"

WAIT = "the host waits"
BLOCKING = "a blocking copy to the device"
PAGEABLE = "a copy to the device from pageable memory"
UNGUARDED = "a copy to the host that nothing waits for"
ON_HOST = "a collective of a host tensor"

_ROOT = Path(__file__).resolve().parents[2]
# Whoever calls these is the one who waits or copies.
_HELPERS = {
    str(_ROOT / "fairhuman" / "common" / "transfer.py"),
    str(_ROOT / "fairhuman" / "fairness" / "mpd.py"),
    str(_ROOT / "tests" / "support" / "fake_engine.py"),
    __file__,
}

_aten = torch.ops.aten
_UNKNOWN = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
_INDEXING = (
    _aten.index.Tensor,
    _aten.index_put.default,
    _aten.index_put_.default,
    _aten._index_put_impl_.default,
    _aten._unsafe_index.Tensor,
)


class Place(NamedTuple):
    """Where something was met."""

    what: str
    where: str
    """The file in the project, and the function: those of the innermost frame that is ours."""
    line: str
    """Its number and text; the library's below it, if there is one."""


class FakeGPU(TorchDispatchMode):
    """Runs what touches the device on fake tensors, and all else as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[Place] = Counter()
        _setup_privateuseone_for_python_backend(NAME, backend_module=_module(self))
        self.device = torch.device(NAME, 0)
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        FakeTensor.tolist = _tolist  # type: ignore[assignment, method-assign]
        self._given = 0
        """Operations in the queue, ever."""
        self._done = 0
        """Of them, those that the host knows to be done."""
        self._pinned: list[Tensor] = []  # kept, so that no other tensor gets their addresses
        self._addresses: set[int] = set()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # a guard around every operation, against a compiler that is not used

    def __enter__(self) -> FakeGPU:
        # What `torch.tensor` is given a device for is made on the host and copied, in our sight.
        torch._C._set_only_lift_cpu_tensors(True)
        entered: FakeGPU = super().__enter__()
        return entered

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        torch._C._set_only_lift_cpu_tensors(False)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:  # most of all calls
            return args[0].fake_device
        kwargs = kwargs or {}
        wanted = kwargs.get("device")
        wanted = None if wanted is None else torch.device(wanted).type
        ours = any(isinstance(leaf, FakeTensor) for leaf in tree_leaves((args, kwargs)))
        if wanted == NAME or (ours and (wanted is None or func is _aten._to_copy.default)):
            return self._on_device(func, args, kwargs)
        if ours:  # made on the host, of the shape of a tensor that is not there
            args = tree_map_only(FakeTensor, lambda t: _made_up(t, t.dtype), args)
        return self._on_host(func, args, kwargs)

    def note(self, what: str) -> None:
        """Take down where the host is."""
        self.found[_place(what)] += 1

    def position(self) -> int:
        """Return how much the queue has been given."""
        return self._given

    def wait(self, position: int) -> None:
        """Wait until so much of the queue is done."""
        if position > self._done:
            self.note(WAIT)
            self._done = position

    def check_collective(self, tensor: Tensor) -> None:
        """Take in a tensor that NCCL would send to the other ranks: it sends the device's only."""
        if tensor.device.type != NAME:
            self.note(ON_HOST)
        self._given += 1

    def _on_host(self, func: Any, args: Any, kwargs: Any) -> Any:
        if func is _aten.is_pinned.default:
            return self._is_pinned(args[0])
        if func is _aten._pin_memory.default:
            return self._pin(args[0].clone())
        if kwargs.get("pin_memory"):
            return self._pin(func(*args, **{**kwargs, "pin_memory": None}))
        return func(*args, **kwargs)

    def _on_device(self, func: Any, args: Any, kwargs: Any) -> Any:
        self._given += 1
        if func is _aten._to_copy.default:
            source, target = args[0], torch.device(kwargs.get("device") or args[0].device)
            if target.type != NAME:
                self._brought(bool(kwargs.get("non_blocking")), pinned=False)
                return _made_up(source, kwargs.get("dtype") or source.dtype)
            if source.device.type != NAME:
                self._sent(source, bool(kwargs.get("non_blocking")))
                source = source.to("meta", non_blocking=False)
                with self._fake:
                    return torch.empty_like(
                        source,
                        dtype=kwargs.get("dtype"),
                        device=target,
                        memory_format=kwargs.get("memory_format") or torch.preserve_format,
                    )
        elif func is _aten.copy_.default:
            target, source = args[:2]
            apart = bool(args[2]) if len(args) > 2 else bool(kwargs.get("non_blocking"))
            if target.device.type != NAME:
                self._brought(apart, self._is_pinned(target))
                return target.copy_(_made_up(source, source.dtype))
            if source.device.type != NAME:
                self._sent(source, apart)
                return target
        elif func is _aten._local_scalar_dense.default:
            self.wait(self._given)
            return _made_up(args[0], args[0].dtype).item()
        elif func in _INDEXING:
            self._check_indices(*args[1:3])
        elif any(tag in func.tags for tag in _UNKNOWN):
            self.wait(self._given)  # and torch tells below that it cannot go on
        try:
            with self._fake:
                return func(*args, **kwargs)
        except Exception:
            traceback.print_exc()  # torch ends the process without a word if it is in a hook
            raise

    def _sent(self, source: Tensor, apart: bool) -> None:
        """Take in a copy to the device; `apart`: the host need not wait."""
        if not apart:
            self.note(BLOCKING)
        elif not self._is_pinned(source):
            self.note(PAGEABLE)

    def _brought(self, apart: bool, pinned: bool) -> None:
        """Take in a copy to the host."""
        if not apart:
            self.wait(self._given)
        elif not pinned:
            self.note(UNGUARDED)

    def _check_indices(self, indices: Any, written: Tensor | None = None) -> None:
        found = [index for index in tree_leaves(indices) if isinstance(index, Tensor)]
        if any(index.device.type != NAME for index in found):
            self.note(BLOCKING)
        # One number that is written by a mask is filled in; else: how many elements does it pick?
        fills = written is not None and written.numel() == 1
        if not fills and any(index.dtype in (torch.bool, torch.uint8) for index in found):
            self.wait(self._given)

    def _pin(self, tensor: Tensor) -> Tensor:
        self._pinned.append(tensor)
        self._addresses.add(tensor.untyped_storage().data_ptr())
        return tensor

    def _is_pinned(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self._addresses


def _module(gpu: FakeGPU) -> Any:
    """Return what torch and the project look for as `torch.fakegpu`."""

    class Event:
        def __init__(self, enable_timing: bool = False) -> None:
            self.position = 0

        def record(self) -> None:
            self.position = gpu.position()

        def synchronize(self) -> None:
            gpu.wait(self.position)

        def elapsed_time(self, later: Event) -> float:
            return 0.0

    class Module:
        @staticmethod
        def is_initialized() -> bool:
            return True

        @staticmethod
        def is_available() -> bool:
            return True

        @staticmethod
        def current_device() -> int:
            return 0

        @staticmethod
        def device_count() -> int:
            return 1

        @staticmethod
        def _is_in_bad_fork() -> bool:
            return False

        @staticmethod
        def get_amp_supported_dtype() -> list[torch.dtype]:
            return [torch.bfloat16, torch.float16]

        @staticmethod
        def manual_seed_all(seed: int) -> None:
            pass

        @staticmethod
        def get_rng_state(device: Any = None) -> Tensor:
            return torch.zeros(1, dtype=torch.uint8)

        @staticmethod
        def set_rng_state(state: Tensor, device: Any = None) -> None:
            pass

        @staticmethod
        def synchronize(device: Any = None) -> None:
            gpu.wait(gpu.position())

    found: Any = Module()
    found.Event = Event
    return found


def _tolist(tensor: Tensor) -> Any:
    """Bring a tensor's numbers in one copy; torch asks a tensor like ours for one at a time."""
    return tensor.cpu().tolist()


def _made_up(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return numbers for a tensor that has none."""
    if dtype.is_floating_point or dtype is torch.bool:
        return torch.ones(tensor.shape, dtype=dtype)
    return torch.arange(tensor.numel()).to(dtype).reshape(tensor.shape)


def _place(what: str) -> Place:
    frames = list(_frames(sys._getframe(2)))
    ours = next((i for i, f in enumerate(frames) if _is_ours(_file(f))), len(frames) - 1)
    frame = frames[ours]
    file = Path(_file(frame))
    short = file.relative_to(_ROOT) if file.is_relative_to(_ROOT) else file
    line = f"{frame.f_lineno}: {linecache.getline(str(file), frame.f_lineno).strip()}"
    for below in frames[:ours]:
        library = _file(below).rpartition("site-packages/")[2]
        if library != _file(below) and not library.startswith("torch/"):
            line += f" (in {library}:{below.f_lineno})"
            break
    return Place(what, f"{short}:{frame.f_code.co_name}", line)


def _frames(frame: FrameType | None) -> Iterator[FrameType]:
    """Yield a frame and those that led to it."""
    while frame:
        yield frame
        frame = frame.f_back


def _file(frame: FrameType) -> str:
    return frame.f_code.co_filename


def _is_ours(file: str) -> bool:
    inside = file.startswith(f"{_ROOT}{os.sep}") and "site-packages" not in file
    return inside and file not in _HELPERS
