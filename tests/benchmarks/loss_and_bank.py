"""Time and memory of the loss and the memory bank, against the two usual ways of computing them.

    python tests/benchmarks/loss_and_bank.py

What is measured is all that a step does beside the network, on one thread, for two heads: draw the negatives
and fetch their rows, look up the positives, the loss forward and backward, update the bank.

- gather: each sample and head has negatives of its own: index_select of B x (K + 1) x D, then bmm, autograd.
  One head after the other, so that only one gathered block lives at a time.
- gemm: negatives shared by the batch; a matrix product for each head, plain autograd.
- ours: pirl.memory and pirl.nce.

Each line is a process of its own. MiB is the growth of the resident set: VmHWM, reset just before the first
step by writing 5 to /proc/self/clear_refs (Linux), less VmRSS at that moment; so it counts what numpy and the
BLAS allocate too. The bank itself is there before. A small step has run first, so that all code is loaded. ms
is the median of the steps after that first one.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import argparse
import json
import random
import statistics
import subprocess
import time
from collections.abc import Callable

import torch
import torchvision
from torch import Tensor
from torch.nn import functional as F

from pirl.methods import memory, nce

TEMPERATURE, KEEP, LOG_Z = 0.07, 0.5, 15.0


def plain_loss(kind: nce.Kind, s0: Tensor, s: Tensor, rows: int) -> Tensor:
    """The equations on scores, left to autograd."""
    if kind == "infonce":
        return F.cross_entropy(torch.cat([s0[:, None], s], 1), torch.zeros(len(s0), dtype=torch.long))
    if kind == "paper":
        log_sum = torch.logsumexp(s, 1)
        return (F.softplus(log_sum - s0) + F.softplus(s - log_sum[:, None]).sum(1)).mean()
    noise = LOG_Z + torch.tensor(s.shape[1] / rows).log()
    return (F.softplus(noise - s0) + F.softplus(s - noise).sum(1)).mean()


def plain_update(bank: Tensor, ids: Tensor, values: Tensor) -> None:
    bank[ids] = F.normalize(KEEP * bank[ids] + (1 - KEEP) * F.normalize(values.detach()))


def gather(kind: nce.Kind, bank: memory.MemoryBank, step: int, num: int, ids: Tensor, heads: Tensor) -> None:
    gather_head(kind, bank.local, num, ids, heads[1])
    gather_head(kind, bank.local, num, ids, heads[0])
    plain_update(bank.local, ids, heads[0])


def gather_head(kind: nce.Kind, bank: Tensor, num: int, ids: Tensor, head: Tensor) -> None:
    drawn = torch.randint(len(bank), (len(ids), num + 1))
    drawn[:, 0] = ids
    fetched = bank.index_select(0, drawn.view(-1)).view(len(ids), num + 1, -1)
    scores = torch.bmm(fetched, head[:, :, None]).squeeze(2) / TEMPERATURE
    plain_loss(kind, scores[:, 0], scores[:, 1:], len(bank)).backward()


def gemm(kind: nce.Kind, bank: memory.MemoryBank, step: int, num: int, ids: Tensor, heads: Tensor) -> None:
    rows = len(bank.local)
    negatives = bank.local.index_select(0, torch.randint(rows, (num,)))
    positives = bank.local.index_select(0, ids)
    loss = heads.new_zeros(())
    for head in heads:
        s0 = (head * positives).sum(1) / TEMPERATURE
        loss = loss + plain_loss(kind, s0, head @ negatives.T / TEMPERATURE, rows)
    loss.backward()
    plain_update(bank.local, ids, heads[0])


def ours(kind: nce.Kind, bank: memory.MemoryBank, step: int, num: int, ids: Tensor, heads: Tensor) -> None:
    negatives = bank.sample(step, num)
    positives = bank.lookup(ids)
    drawn = negatives.wait()
    own = bank.own(ids, negatives.ids)
    log_z = torch.tensor(LOG_Z)
    nce.losses(kind, heads, positives, drawn, own, TEMPERATURE, log_z, bank.rows).mean().backward()
    bank.update(ids, heads[0])


VARIANTS: dict[str, Callable[[nce.Kind, memory.MemoryBank, int, int, Tensor, Tensor], None]] = {
    "gather": gather,
    "gemm": gemm,
    "ours": ours,
}


def resident(field: str) -> float:
    """A field of /proc/self/status in MiB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) / 1024


def measure(variant: str, kind: nce.Kind, num: int, batch: int, rows: int, repeats: int) -> dict[str, float]:
    """One line of the table, in this process."""
    torch.set_num_threads(1)
    bank = memory.MemoryBank(rows, seed=0, keep=KEEP)
    run = VARIANTS[variant]

    def step(number: int, num: int) -> float:
        ids = torch.tensor(random.sample(range(rows), batch))
        heads = F.normalize(torch.randn(2, batch, 128), dim=-1).requires_grad_()
        begin = time.perf_counter()
        run(kind, bank, number, num, ids, heads)
        return 1000 * (time.perf_counter() - begin)

    step(0, 16)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    step(1, num)
    peak = resident("VmHWM")
    times = [step(2 + i, num) for i in range(repeats)]
    return {"ms": statistics.median(times), "mib": peak - before}


def network_ms(batch: int, timed: int = 4) -> float:
    """Forward and backward of a ResNet-50 on the 224-pixel view, float32, one thread.

    `timed` images, scaled to the batch. The patches of the pretext view, about three quarters as much again,
    are not counted.
    """
    torch.set_num_threads(1)
    network = torchvision.models.resnet50().to(memory_format=torch.channels_last)
    images = torch.randn(timed, 3, 224, 224).to(memory_format=torch.channels_last)
    network(images[:1]).sum().backward()
    begin = time.perf_counter()
    network(images).sum().backward()
    return 1000 * (time.perf_counter() - begin) * batch / timed


def in_child(*arguments: object) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-negatives", type=int, nargs="+", default=[4096, 32000, 65536])
    parser.add_argument("--kind", nargs="+", default=["paper"], choices=["paper", "npid", "infonce"])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rows", type=int, default=1_281_167, help="of the bank; default ImageNet's")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--child", nargs=6, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        variant, kind, *numbers = args.child
        print(json.dumps(measure(variant, kind, *map(int, numbers))))
        return

    network = network_ms(args.batch)
    print(f"B={args.batch}, D=128, two heads, bank of {args.rows:,} rows, one thread")
    print(f"ResNet-50 step at 224 px: {network:,.0f} ms (timed at B=4, scaled)\n")
    print(f"{'loss':8} {'K':>7} {'variant':8} {'ms':>9} {'MiB':>7} {'faster':>8} {'memory':>8} {'of step':>8}")
    for kind in args.kind:
        for num in args.num_negatives:
            base: dict[str, float] = {}
            for variant in VARIANTS:
                got = in_child(variant, kind, num, args.batch, args.rows, args.repeats)
                base = base or got
                print(
                    f"{kind:8} {num:7,} {variant:8} {got['ms']:9.1f} {got['mib']:7.1f} "
                    f"{base['ms'] / got['ms']:7.1f}x {'1/' + format(base['mib'] / got['mib'], '.1f'):>8} "
                    f"{got['ms'] / network:8.2%}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
