"""One worker's part in an all-reduce of all workers: how fast training's gradients would go round."""

import time
from datetime import timedelta

MEGABYTES = 8
LIMIT_S = 60
TIMES = 4
SLOW_S = 3
"""Where the first took longer, one more will do."""


def megabytes_per_s(url: str, rank: int, world: int, gpus: int, local: int) -> float:
    """MB of gradients for each second: by NCCL where the nodes have GPUs, else by gloo.

    Args:
        url: Where the workers meet, as torch takes it.
        rank: Of this worker, of `world`.
        gpus: That each node has.
        local: Number of this worker on its node.

    Raises:
        RuntimeError: The others did not come, or were lost.
    """
    import torch
    import torch.distributed as td

    torch.set_num_threads(1)
    device = torch.device("cuda", local % gpus) if gpus else torch.device("cpu")
    if gpus:
        torch.cuda.set_device(device)
    limit = timedelta(seconds=LIMIT_S)
    td.init_process_group("nccl" if gpus else "gloo", init_method=url, rank=rank, world_size=world, timeout=limit)
    values = torch.ones(MEGABYTES * 10**6 // 4, device=device)
    began = time.perf_counter()
    td.all_reduce(values)
    took = torch.tensor(time.perf_counter() - began, device=device)
    td.all_reduce(took, op=td.ReduceOp.MAX)
    rates = []
    for _ in range(TIMES if float(took) < SLOW_S else 1):
        began = time.perf_counter()
        td.all_reduce(values)
        if float(values[0]) <= 0:  # which waits for the device
            raise RuntimeError("the sum over the workers is wrong")
        rates.append(MEGABYTES / (time.perf_counter() - began))
    td.destroy_process_group()
    return max(rates)
