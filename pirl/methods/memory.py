"""The memory bank: one unit row for each image, sharded over the ranks (paper, section 3).

Every rank knows the ids of the global batch and of the negatives without being told, since both are
functions of integers. So each rank adds the rows that it owns, one collective completes them, and the numbers
do not depend on how many ranks there are.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.nn import functional as F

from pirl import dist
from pirl.errors import ConfigError
from pirl.loading.device import sent
from pirl.methods.draws import DRAW, initial_rows, negative_ids
from pirl.sections import ROW_DIM


class Negatives(NamedTuple):
    """Rows of the bank that a step compares with, on their way from all ranks."""

    ids: Tensor
    """`(K,)` int64."""
    wait: Callable[[], Tensor]
    """Gives the rows when all are here: `(K, D)` float32 or bfloat16."""


class MemoryBank:
    """A table of `rows` unit vectors, of which each rank owns a contiguous range of ids.

    Ranges are those of torch.chunk and of a DTensor sharded on dim 0: ceil(rows / ranks) each, the last ones
    fewer. Arguments named `ids` are int64 tensors on the CPU, the same on every rank: which of them are owned is found
    there, so that no GPU is waited for.

    Attributes:
        rows: Rows on all ranks together.
        owned: Ids of this rank's rows.
        local: This rank's rows, `(len(owned), dim)` float32.
        draw: How the negatives are drawn, as `draws.negative_ids` says.

    Args:
        seed: Of the initial rows, which are a function of (seed, id), and of the negatives' ids.
        keep: Weight of the old row in an update.
        wire_dtype: Number format of the negatives when they are gathered, also on one rank.

    Raises:
        ConfigError: There are fewer rows than ranks.
    """

    def __init__(
        self,
        rows: int,
        *,
        dim: int = ROW_DIM,
        seed: int,
        keep: float,
        wire_dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        ranks = dist.world_size()
        if rows < ranks:
            raise ConfigError(
                f"the memory bank has {rows} rows, one for each image, and cannot be shared by {ranks} "
                f"workers: use --cluster.workers {rows} or fewer, or more images"
            )
        self.rows = rows
        self._mesh: DeviceMesh | None = None
        self._seed, self._keep, self._wire_dtype = seed, keep, wire_dtype
        size = -(-rows // ranks)
        self._bounds = [min(size * rank, rows) for rank in range(ranks + 1)]
        self.owned = range(*self._bounds[dist.rank() :][:2])
        self.local = initial_rows(seed, self.owned, dim).to(device)
        self.draw = DRAW

    @torch.no_grad()
    def lookup(self, ids: Tensor) -> Tensor:
        """Rows `(B, dim)` of the global batch's ids `(B,)`; collective, the same result on every rank."""
        found = self.local.new_zeros(len(ids), self.local.shape[1])
        places, local = self._mine(ids)
        found.index_copy_(0, places, self.local.index_select(0, local))
        return dist.all_reduce_sum(found)  # exact: one owner adds to zeros

    @torch.no_grad()
    def sample(self, step: int, num: int) -> Negatives:
        """Starts to gather `num` different rows, as they are now; collective, and the same on every rank.

        The ids are uniform over all rows, sorted, and a function of (seed, step) alone.

        Raises:
            ConfigError: `num` leaves no row for the sample itself.
        """
        if num > self.rows - 1:
            raise ConfigError(
                f"loss.num_negatives {num} is more than the {self.rows - 1} other images of the data set: "
                f"use --loss.num_negatives {self.rows - 1} or fewer"
            )
        ids = negative_ids(self.draw, self._seed, step, self.rows, num)
        cuts = np.searchsorted(ids, self._bounds)
        mine = ids[slice(*cuts[dist.rank() :][:2])] - self.owned.start
        device = self.local.device
        part = self.local.index_select(0, sent(torch.from_numpy(mine), device)).to(self._wire_dtype)
        return Negatives(sent(torch.from_numpy(ids), device), dist.start_gather_parts(part, np.diff(cuts).tolist()))

    @torch.no_grad()
    def update(self, ids: Tensor, values: Tensor) -> None:
        """Moves the batch's rows: m ← normalise(keep·m + (1 - keep)·normalise(v)). No communication.

        Args:
            ids: `(B,)`, each once.
            values: `(B, dim)` embeddings of the global batch, the same on every rank. A row that a zero or
                opposite value would leave without a direction stays as it is.
        """
        places, local = self._mine(ids)
        old = self.local.index_select(0, local)
        unit = F.normalize(values.to(old).index_select(0, places))
        self.local.index_copy_(0, local, _unit_or(old, self._keep * old + (1 - self._keep) * unit))

    @torch.no_grad()
    def fill(self, ids: Tensor, values: Tensor) -> None:
        """Sets rows to normalise(v): the first values from a forward pass. Arguments as for `update`."""
        places, local = self._mine(ids)
        old = self.local.index_select(0, local)
        self.local.index_copy_(0, local, _unit_or(old, values.to(old).index_select(0, places)))

    @staticmethod
    def own(ids: Tensor, negatives: Tensor) -> Tensor:
        """`(B, K)` bool, True where one of the negatives' ids `(K,)` is the sample's own, `(B,)`."""
        return sent(ids, negatives.device)[:, None] == negatives

    def sharded(self) -> Tensor:
        """This bank as one tensor `(rows, dim)` for torch.distributed.checkpoint.

        A DTensor over `local` where there is a process group, else `local`. Loading into it changes `local`.
        """
        if not torch.distributed.is_initialized():
            return self.local
        if self._mesh is None:  # made once: each may make a process group
            self._mesh = init_device_mesh(self.local.device.type, (dist.world_size(),))
        mesh = self._mesh
        shape = torch.Size((self.rows, self.local.shape[1]))
        return DTensor.from_local(self.local, mesh, [Shard(0)], run_check=False, shape=shape, stride=(shape[1], 1))

    def _mine(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Places of this rank's rows in `ids` and in `local`, on the device."""
        places = ((ids >= self.owned.start) & (ids < self.owned.stop)).nonzero().squeeze(1)
        local = ids[places] - self.owned.start
        return sent(places, self.local.device), sent(local, self.local.device)


def _unit_or(old: Tensor, values: Tensor) -> Tensor:
    norm = values.norm(dim=1, keepdim=True)
    return torch.where(norm > 1e-6, values / norm, old)
