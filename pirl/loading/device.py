"""What a device is asked: copies after which neither it nor the CPU has waited for the other, and exact numbers.

What a GPU is asked is put in a queue. A plain copy waits until that queue has been worked off, and then the GPU idles
while the CPU prepares what comes next.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def sent(t: Tensor, device: torch.device) -> Tensor:
    """`t` on a device; from the CPU by way of pinned memory, which is not used again before the copy has come."""
    if t.device == device or device.type == "cpu":
        return t.to(device)
    return t.pin_memory().to(device, non_blocking=True)


def fetched(t: Tensor) -> Callable[[], Tensor]:
    """Starts to copy `t` to the CPU, as it is now; returns the function that waits for it and gives it."""
    if t.device.type == "cpu":
        copy = t.clone()
        return lambda: copy
    here = torch.empty(t.shape, dtype=t.dtype, pin_memory=True)
    here.copy_(t, non_blocking=True)
    done = torch.cuda.Event()  # type: ignore[no-untyped-call]
    done.record()

    def waited() -> Tensor:
        done.synchronize()
        return here

    return waited


@contextmanager
def exact_convolutions() -> Iterator[None]:
    """While this is open, convolutions of float32 have its 24 bits of mantissa, and not the 11 of TF32."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
