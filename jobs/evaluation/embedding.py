"""An embedding: checked, then made in this process, by those of torchrun, or by workers of Ray."""

import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as td

from jobs.evaluation.evaluation_request import EmbeddingRequest, open_images
from jobs.run.checks import check_gpus
from jobs.run.here import join_group
from pirl import dist
from pirl.data.dataset import Dataset
from pirl.errors import ConfigError, RunFailed
from pirl.evaluate.countdown import Countdown
from pirl.evaluate.embed import EMBEDDING, Embedder, Entry, check_destination, finish, is_done, shard_name, start
from pirl.methods.models import TAPS
from pirl.runs.weights import Weights, read_weights

Say = Callable[[str], None]


def check(request: EmbeddingRequest) -> None:
    """Refuses, before anything starts, weights that are none, data that is missing, and a folder of something else.

    Raises:
        ConfigError: What is wrong with it.
        StorageError: The store did not answer.
    """
    if request.tap not in TAPS:
        raise ConfigError(f"--tap {request.tap}: use one of {', '.join(TAPS)}")
    weights = read_weights(request.target)
    dataset = data_of(request, weights)
    if request.out.overlaps(dataset.folder):
        raise ConfigError(f"DESTINATION {request.out} overlaps the data set {dataset.uri}: name a folder apart from it")
    if weights.checkpoint and weights.checkpoint.overlaps(request.out):
        inside = f"{weights.checkpoint.parent}/embedding"
        raise ConfigError(f"DESTINATION {request.out} overlaps the checkpoint: name a folder apart from it ({inside})")
    if not request.use_ray and request.config.cluster.gpus_per_worker:
        check_gpus(request.config.cluster.gpus_per_worker)
    check_destination(request.out, embedder_of(request, weights).request(), request.overwrite)


def data_of(request: EmbeddingRequest, weights: Weights) -> Dataset:
    """The images; raises as `check`."""
    if not request.data and weights.config is None:
        raise ConfigError(f"{request.target} is a file, which has no data of its own: add --data URI")
    own = weights.config.data if weights.config else None
    dataset = open_images(request.config.data, request.data, own)
    if request.split == "train":
        return dataset
    if (test := dataset.held_out()) is None:
        raise ConfigError(f"--split test: {dataset.uri} has no test split beside it: use --split train")
    return test


def embedder_of(request: EmbeddingRequest, weights: Weights, device: torch.device | None = None) -> Embedder:
    """What makes the shards, on its device; without one, what it is asked about before."""
    kind = "cuda" if request.config.cluster.gpus_per_worker else "cpu"
    return Embedder(
        trunk=weights.trunk().to(device or "cpu").eval(),
        dataset=data_of(request, weights),
        folder=request.out,
        image_size=weights.image_size(request.image_size),
        device=device or torch.device(kind),
        tap=request.tap,
        dtype=request.dtype,
        skip=request.config.data.on_error == "skip",
    )


def run_embedding(request: EmbeddingRequest) -> int:
    """Carries it out where it is asked for; returns the exit code.

    Raises:
        ConfigError: The cluster cannot carry it.
        CorruptImage, RunFailed, StorageError: What ended it; the same command goes on.
    """
    if request.use_ray:
        return _on_ray(request)
    device = join_group(use_gpu=request.config.cluster.gpus_per_worker > 0)
    try:
        work(request, device, lambda line: print(line, file=sys.stderr, flush=True))
        if dist.rank() == 0:
            print(request.out)
    finally:
        if td.is_initialized():
            td.destroy_process_group()
    return 0


def work(request: EmbeddingRequest, device: torch.device, say: Say) -> None:
    """What every rank does."""
    weights = read_weights(request.target)
    embedder = embedder_of(request, weights, device)
    asked, rank, first = embedder.request(), dist.rank(), dist.rank() == 0
    ready = not request.overwrite and is_done(request.out, asked, embedder.skip) if first else True
    if not all(dist.all_gather_dicts({str(rank): ready}).values()):
        if first:
            start(request.out, asked, request.overwrite)
        dist.barrier()
        own = range(rank, embedder.shards, dist.world_size())
        there = dist.all_gather_dicts(dict(_whole(embedder, own)))
        missing = [number for number in range(embedder.shards) if shard_name(number) not in there]
        own_rows = sum(map(embedder.rows, missing[rank :: dist.world_size()]))
        progress = _progress(embedder, missing, say if first else lambda line: None)
        share = progress.total / max(own_rows, 1)  # the other ranks are taken to be as fast
        made = {
            shard_name(number): embedder.write(number, lambda images: progress.add(round(images * share)))
            for number in missing[rank :: dist.world_size()]
        }
        found = there | dist.all_gather_dicts(made)
        if first:
            _finish(embedder, weights, asked, list(found.values()))


class EmbeddingWorker:
    """An actor of Ray that makes shards."""

    def __init__(self, request: EmbeddingRequest) -> None:
        device = torch.device("cuda" if request.config.cluster.gpus_per_worker else "cpu")
        self.embedder = embedder_of(request, read_weights(request.target), device)

    def make(self, number: int) -> tuple[int, Entry]:
        """Writes a shard, if it is not there; returns its number too."""
        return number, self.embedder.find(number) or self.embedder.write(number)


def _on_ray(request: EmbeddingRequest) -> int:
    """On the cluster of RAY_ADDRESS, or on a Ray of its own; returns the exit code."""
    from jobs.run.on_ray import AHEAD, connect

    weights = read_weights(request.target)
    embedder = embedder_of(request, weights)
    if request.overwrite or not is_done(request.out, embedder.request(), embedder.skip):
        connect(meanwhile=AHEAD)
        embed_connected(request, lambda line: print(line, file=sys.stderr, flush=True))
    print(request.out)
    return 0


def embed_connected(request: EmbeddingRequest, say: Say) -> None:
    """On the cluster that this process is connected to; nothing where all is done. Raises as `run_embedding`."""
    weights = read_weights(request.target)
    embedder = embedder_of(request, weights)
    asked = embedder.request()
    if not request.overwrite and is_done(request.out, asked, embedder.skip):
        return
    import ray

    from clusters.preflight import check_nodes, check_resources, nodes_alive

    config = request.config
    data = config.data.model_copy(update={"uri": embedder.dataset.uri})
    nodes = nodes_alive()
    check_resources(config, nodes)
    check_nodes(config.model_copy(update={"data": data}), request.out, nodes)
    start(request.out, asked, request.overwrite)
    progress = _progress(embedder, range(embedder.shards), say)
    found = []
    try:
        for number, entry in _dealt(request, embedder.shards):
            found.append(entry)
            progress.add(embedder.rows(number))
    except ray.exceptions.RayTaskError as error:
        raise getattr(error, "cause", None) or RunFailed(str(error)) from None
    except ray.exceptions.RayError as error:
        raise RunFailed(f"{error}\nto go on with what was made, type the same command again") from None
    _finish(embedder, weights, asked, found)


def _dealt(request: EmbeddingRequest, shards: int) -> Iterator[tuple[int, Entry]]:
    """Has Ray's workers make the shards: each takes the next one when it is through; in the order in which they end."""
    import ray
    from ray.util import ActorPool

    cluster = request.config.cluster
    actor: Any = ray.remote(EmbeddingWorker)
    actor = actor.options(
        num_cpus=cluster.cpus_per_worker,
        num_gpus=cluster.gpus_per_worker,
        max_restarts=cluster.max_failures,
        max_task_retries=cluster.max_failures,
    )
    workers = [actor.remote(request) for _ in range(min(cluster.workers, shards))]
    pool: Any = ActorPool(workers)
    yield from pool.map_unordered(lambda worker, number: worker.make.remote(number), list(range(shards)))


def _whole(embedder: Embedder, numbers: range) -> Iterator[tuple[str, Entry]]:
    """Those of some shards that are there and whole, by their names."""
    for number in numbers:
        if entry := embedder.find(number):
            yield shard_name(number), entry


def _progress(embedder: Embedder, missing: Any, say: Say) -> Countdown:
    return Countdown(say, f"features of {embedder.dataset.uri}", sum(map(embedder.rows, missing)))


def _finish(embedder: Embedder, weights: Weights, asked: dict[str, Any], found: list[Entry]) -> None:
    """Writes `embedding.json`, and says what is not in it."""
    network = {"arch": weights.arch, "width": weights.width, "stem": weights.stem}
    without = finish(embedder, asked, {"weights": weights.about(), "network": network}, found)
    if without:
        left = f"{without:,} of {embedder.dataset.rows:,} images could not be used, and have no features (null)"
        print(f"{left}: see without_features in {embedder.folder / EMBEDDING}", file=sys.stderr)
