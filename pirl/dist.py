"""Collectives that also work with no process group; on gloo with CPU tensors, on nccl with CUDA tensors."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def rank() -> int:
    """Number of this process in the default group, 0 without one."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Processes in the default group, 1 without one."""
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier() -> None:
    """Waits until every rank is here."""
    if world_size() > 1:
        dist.barrier()


def all_reduce_sum(t: Tensor) -> Tensor:
    """Adds `t` over the ranks, in place, and returns it."""
    if world_size() > 1:
        dist.all_reduce(t)
    return t


def broadcast_from_zero(t: Tensor) -> None:
    """Overwrites `t` with rank 0's."""
    if world_size() > 1:
        dist.broadcast(t, src=0)


def gather_parts(part: Tensor, sizes: Sequence[int]) -> Tensor:
    """Puts the ranks' parts together along dim 0, in rank order; every rank gets the whole.

    Args:
        part: This rank's part, `(sizes[rank], ...)`; not differentiated through.
        sizes: Length of each rank's part, known to every rank. Parts may differ and may be empty.

    Returns:
        `(sum(sizes), ...)`, with the dtype and on the device of `part`.
    """
    return start_gather_parts(part, sizes)()


def start_gather_parts(part: Tensor, sizes: Sequence[int]) -> Callable[[], Tensor]:
    """Starts `gather_parts` in the background and returns the function that waits for it and gives the whole.

    `part` must not change in between.
    """
    if world_size() == 1:
        return lambda: part
    longest = max(sizes)
    padded = part.detach().contiguous()
    if len(part) < longest:
        padded = torch.cat([padded, padded.new_zeros(longest - len(part), *part.shape[1:])])
    received = padded.new_empty(len(sizes) * longest, *padded.shape[1:])
    work = dist.all_gather_into_tensor(received, padded, async_op=True)
    assert work is not None  # it is None only where async_op is off

    def wait() -> Tensor:
        work.wait()
        if min(sizes) == longest:
            return received
        return torch.cat([rows[:size] for rows, size in zip(torch.split(received, longest), sizes, strict=True)])

    return wait


def all_gather_dicts(own: dict[str, T]) -> dict[str, T]:
    """Joins the ranks' small dicts, whose keys differ, in rank order."""
    if world_size() == 1:
        return own
    gathered: list[dict[str, T]] = [{} for _ in range(world_size())]
    dist.all_gather_object(gathered, own)
    return {key: value for part in gathered for key, value in part.items()}
