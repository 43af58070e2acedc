"""A device that computes nothing and tells on who waits for it: torch's `meta`, watched from below.

Tensors on it have shapes and no values, so that whatever needs a value shows itself. The CPU's tensors are real.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten

DEVICE = torch.device("meta")
"""What stands for a GPU."""

ROOT = Path(__file__).parents[1]

OF_VALUES = {
    aten._local_scalar_dense.default: lambda: 0.0,
    aten.equal.default: lambda: False,
    aten.is_nonzero.default: lambda: False,
    aten.nonzero.default: lambda: torch.empty(1, 1, dtype=torch.int64, device=DEVICE),
    aten.masked_select.default: lambda: torch.empty(1, device=DEVICE),
    aten._unique2.default: lambda: (torch.empty(1, device=DEVICE),) * 3,
}
"""What needs values: the CPU waits for them, or for how many there are; and what it gets here."""
COPIES = (aten._to_copy.default, aten.copy_.default)
INDEXED = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default)
"""Where a mask is among the indices, it is counted first."""


class FakeGpu:
    """Counts, while it is watched, by the place in the project that asked for it.

    Attributes:
        waits: Values that the CPU asked for, and copies that do not go by way of pinned memory.
        events: Waits for an event, which are those for a copy to the CPU that goes on beside the work of a GPU.
    """

    def __init__(self) -> None:
        self.waits: Counter[str] = Counter()
        self.events = 0
        self.is_watched = False
        self.pinned: dict[int, Tensor] = {}  # held, or another tensor might have its address

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """While this is open, there is such a device; autocast changes numbers alone, and does not know it."""
        with (
            patch.object(torch, "autocast", lambda *_, **__: nullcontext()),
            patch.object(torch.cuda, "Event", self.event),
            _Operations(self),
            _Functions(self),
        ):
            yield

    def event(self) -> Any:
        """What torch.cuda.Event makes."""
        gpu = self

        class Event:
            def record(self) -> None:
                pass

            def synchronize(self) -> None:
                gpu.events += gpu.is_watched

        return Event()

    def wait(self, what: object) -> None:
        """Counts one, by the innermost function of the project that is at work."""
        if self.is_watched:
            frame = sys._getframe(1)
            while frame and (path := Path(frame.f_code.co_filename)) and not path.is_relative_to(ROOT / "pirl"):
                frame = frame.f_back  # type: ignore[assignment]
            place = f"{path.relative_to(ROOT)}:{frame.f_code.co_name}" if frame else "outside of pirl"
            self.waits[f"{place}: {what}"] += 1

    def pin(self, t: Tensor) -> Tensor:
        """Remembers that a GPU can read it by itself."""
        self.pinned[t.untyped_storage().data_ptr()] = t
        return t

    def is_pinned(self, t: Tensor) -> bool:
        return t.device.type == "cpu" and t.untyped_storage().data_ptr() in self.pinned


class _Operations(TorchDispatchMode):
    def __init__(self, gpu: FakeGpu) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, gpu = kwargs or {}, self.gpu
        if func is aten.is_pinned.default:
            return gpu.is_pinned(args[0])
        if func is aten._pin_memory.default:
            return gpu.pin(args[0].clone())
        if kwargs.pop("pin_memory", False):
            return gpu.pin(func(*args, **kwargs))
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        there = [t for t in tensors if t.device == DEVICE]
        if func in COPIES:
            return self.copied(func, args, kwargs)
        if there and func in OF_VALUES:
            gpu.wait(func)
            return OF_VALUES[func]()
        if there and func in INDEXED and any(t.dtype in (torch.bool, torch.uint8) for t in args[1] if t is not None):
            gpu.wait(f"{func} by a mask")
            return args[0]
        if there and any(t.device != DEVICE and t.ndim for t in tensors):  # numbers alone go along with the request
            gpu.wait(f"{func} of tensors of both")
        return func(*args, **kwargs)

    def copied(self, func: Any, args: Any, kwargs: Any) -> Any:
        """A copy within the CPU or the device, or between them."""
        if func is aten.copy_.default:
            target, source = args[:2]
            to, goes_on = target.device, kwargs.get("non_blocking", args[2] if len(args) > 2 else False)
        else:
            target, source = None, args[0]
            to, goes_on = kwargs.get("device") or source.device, kwargs.get("non_blocking", False)
        if source.device == to or not source.numel():
            return func(*args, **kwargs)
        here = source if to == DEVICE else target
        if here is None or not goes_on or not self.gpu.is_pinned(here):
            self.gpu.wait(f"{func} {'to' if to == DEVICE else 'from'} the device, not by way of pinned memory")
        if to == DEVICE:
            return func(*args, **kwargs)
        return torch.zeros(source.shape, dtype=source.dtype) if target is None else target.zero_()


class _Functions(TorchFunctionMode):
    """Sees how Python's numbers become tensors on a device: that is a copy, and nothing further down says so."""

    def __init__(self, gpu: FakeGpu) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        out = func(*args, **(kwargs or {}))
        if name in ("tensor", "as_tensor", "new_tensor") and isinstance(out, Tensor) and out.device == DEVICE:
            source = args[-1] if args else None
            if not isinstance(source, Tensor):
                self.gpu.wait(f"{name} of numbers")
        if name in ("__getitem__", "__setitem__") and args[0].device == DEVICE and isinstance(args[1], list):
            self.gpu.wait("an index that is a list")
        return out
