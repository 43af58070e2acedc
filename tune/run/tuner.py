"""Run the trials of a sweep on the connected Ray, as many at once as there is room for."""

import logging
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from clusters.preflight import check_nodes, check_resources, nodes_alive, room_for
from pirl.storage.folder import Folder
from pirl.storage.temporary import temporary_folder
from tune.curve import curve_of
from tune.request import SweepRequest
from tune.rows import Row
from tune.run.placement_groups import giving_back

if TYPE_CHECKING:
    from ray.tune.schedulers import TrialScheduler

LOST = 3
"""How often the process that watches a trial may be lost; what its workers survive is `cluster.max_failures`."""

QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial that failed has none
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",  # what Tune writes down is not needed again
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
"""Read by ray.tune when it is imported."""


def run_trials(
    request: SweepRequest,
    rows: Sequence[Row],
    at_once: int,
    changed: Callable[[Row, str], None],
    preempted: threading.Event,
) -> None:
    """Trains what waits; returns when nothing does, at Ctrl-C, or when all that runs has stopped on preemption.

    Args:
        rows: All trials. Their states, curves and errors are kept up to date.
        at_once: Trials at once, by their processes. Where that is one more than there is room for, it starts while
            the others train, and Ray gives it its workers, all together, when one of them has ended.
        changed: Called after each change of a row, with its state before.
        preempted: Set when the workers are asked to stop; no trial starts then.
    """
    os.environ |= QUIET
    import ray
    from ray import tune

    from jobs.run.ray_internals import keep_keys_of_stores
    from tune.run.follower import EndAfterPreemption, Follower
    from tune.run.trial import RunTrial

    keep_keys_of_stores()
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # errors are in the table
    waiting = [row for row in rows if row.state == "waiting"]
    asked = [
        {
            "storage": request.folder,
            "name": row.trial.name,
            "config": row.trial.config.model_dump_json(),
            "epochs": row.trial.config.optim.epochs,
            "metric": request.metric,
            "every": request.every,
        }
        for row in waiting
    ]
    here = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    with (
        tempfile.TemporaryDirectory(dir=temporary_folder()) as scratch,
        own_ctrl_c(),
        giving_back(waiting),
    ):
        tune.Tuner(
            # No CPU: it would be missing for the workers. On this node: where Tune's own files are.
            tune.with_resources(RunTrial, {"CPU": 0, f"node:{here}": 0.001}),
            param_space={"trial": tune.grid_search(asked)},
            tune_config=tune.TuneConfig(
                scheduler=scheduler_of(request, rows),
                max_concurrent_trials=at_once,
                trial_name_creator=lambda trial: trial.config["trial"]["name"],
                trial_dirname_creator=lambda trial: trial.config["trial"]["name"],
                reuse_actors=False,  # the end of a trial's process is what ends its workers
            ),
            run_config=tune.RunConfig(
                name="sweep",
                storage_path=scratch,
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=LOST),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                callbacks=[Follower(waiting, changed, preempted)],
                stop=EndAfterPreemption(waiting, preempted),
            ),
        ).fit()


def scheduler_of(request: SweepRequest, rows: Sequence[Row]) -> "TrialScheduler":
    """What stops trials, with what it is to know of those that have begun."""
    from ray.tune.schedulers import FIFOScheduler

    from tune.run.asha import ByLength

    if not request.grace:
        return FIFOScheduler()  # type: ignore[no-untyped-call]
    scheduler = ByLength(
        (row.trial.config.optim.epochs for row in rows), request.metric, request.grace, request.reduction
    )
    for row in rows:
        config = row.trial.config
        known = (
            row.curve if row.ended else curve_of(request.folder / row.trial.name, config, request.metric, request.every)
        )
        scheduler.remember(row, known)
    return scheduler


@contextmanager
def own_ctrl_c() -> Iterator[None]:
    """Gives Ctrl-C back after the block: Tune keeps it, and the next one would end nothing."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def concurrency(storage: Folder, rows: Sequence[Row]) -> int:
    """How many of the trials that wait fit on the connected cluster at once, each with all of its workers.

    Raises:
        ConfigError: One does not fit alone, or a node cannot read the data or write the storage.
    """
    nodes = nodes_alive()
    configs = [row.trial.config for row in rows if row.state == "waiting"]
    for config in configs:
        check_resources(config, nodes)
    for config in {config.data.model_dump_json(): config for config in configs}.values():
        check_nodes(config, storage, nodes)
    return min(room_for(config, nodes) // config.cluster.workers for config in configs)
