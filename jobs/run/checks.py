"""What is refused before anything starts: data and GPUs that a run cannot have."""

from typing import TYPE_CHECKING

from pirl.errors import ConfigError, NameTakenError
from pirl.processes import torchrun
from pirl.runs.checkpoint_folder import data_of
from pirl.runs.run import Run
from pirl.sections import Cluster

if TYPE_CHECKING:
    from pirl.data.dataset import Dataset


def check_request(run: Run, use_ray: bool, to_learn: "Dataset | None" = None) -> None:
    """Refuses, before anything starts, what cannot be: data or targets that are missing, too small or not those of the
    run's checkpoint, weights of another network, and without Ray more processes than streams or GPUs.

    Args:
        to_learn: The images with labels such as those that are learned, where another network is yet to say which.

    Raises:
        ConfigError: What is wrong with it.
        StorageError: The store did not give its manifest.
    """
    from pirl.data.dataset import open_data
    from pirl.data.plan import check_data

    config = run.config
    processes = torchrun("WORLD_SIZE") or 1
    if not use_ray and (problem := config.too_many(processes, "torchrun's --nproc-per-node")):
        raise ConfigError(problem)
    dataset = open_data(config.data)
    if to_learn is None and config.learns_from_a_network:
        from pirl.runs.learned import learned

        targets = learned(config, dataset)
        to_learn = targets.dataset
        if run.checkpoint:
            targets.check_same(run.folder)
    check_data(config, to_learn or dataset, config.cluster.workers if use_ray else processes)
    if run.checkpoint and data_of(run.checkpoint) != dataset.fingerprint:
        raise NameTakenError(
            f"{config.data.uri} is not the data set that {run.checkpoint} was trained on: its steps"
            f"{' and the rows of its memory bank' if config.has_bank else ''} are those of other images",
            f"choose another name (--run {run.name}-2)",
        )
    if run.checkpoint and config.permutations:
        from pirl.runs.stored_permutations import read_permutations

        read_permutations(run.folder, config)
    if config.model.weights and not run.checkpoint:
        from pirl.runs.weights import weights_of

        weights_of(config)
    if use_ray:
        check_shares_of_gpus(config.cluster)
    elif config.cluster.gpus_per_worker:
        check_gpus(config.cluster.gpus_per_worker)


def check_shares_of_gpus(cluster: Cluster) -> None:
    """Refuses workers that Ray would put on one GPU together: NCCL has one of them for each, and calls the others
    duplicates. A run of one worker may have a share of a GPU. Raises ConfigError.
    """
    gpus = cluster.gpus_per_worker
    if gpus % 1 and (gpus > 1 or cluster.workers > 1):
        raise ConfigError(
            f"cluster.gpus_per_worker {gpus:g} with cluster.workers {cluster.workers} gives workers a part of a GPU, "
            "and workers that train together need a GPU each: use --cluster.gpus-per-worker 1 with fewer "
            "--cluster.workers, or a share of a GPU with --cluster.workers 1"
        )


def check_gpus(gpus_per_worker: float) -> None:
    """Refuses GPUs that this machine does not have, or a share of one; on a cluster Ray knows. Raises ConfigError."""
    import torch

    processes = torchrun("LOCAL_WORLD_SIZE") or 1
    if gpus_per_worker != 1:
        raise ConfigError(f"cluster.gpus_per_worker {gpus_per_worker:g} needs Ray: without it use 1 or 0")
    if torch.cuda.device_count() < processes:
        raise ConfigError(
            f"cluster.gpus_per_worker 1 with {processes} processes needs as many GPUs, and this machine has "
            f"{torch.cuda.device_count()}: add --cluster.gpus-per-worker 0 to train on the CPU"
        )
