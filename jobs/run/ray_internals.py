"""All that hangs on private parts of Ray, as seen in Ray 2.60; tests/jobs/test_ray_internals.py says which has changed.

- Default callbacks and scaling policy of `TorchTrainer`: leaves out processes that serve nobody here. Without it each
  takes two to eight seconds of a core at the start, and a hundredth of one while the run lasts.
- `Node.kill_log_monitor`: ends the process that looks for output. Without it, a hundredth of a core.
- `internal_kv`: the driver tells all workers of a preemption, and a worker tells the driver what it does. Without it no
  checkpoint is saved then, and a terminal does not show what goes on.
- The GCS' table of placement groups: gives those of trials that were cut off back. Without it a sweep may never end.
- `ENV_VARS_TO_PROPAGATE`: names of what Tune hands to trials. Without it, a driver's keys of a store are in Ray's logs.
- `_base_exc`: what a worker raised, for the first line of an error. Without it the line says where, and not what.
- `print_to_stdstream`: prints what raylets say. Without it, a lost process comes with half a page of guesses.
- `build_checkpoint_path_from_name`: where Ray looks for a checkpoint that we have sent ourselves. Without it, nowhere.
"""

import re
import signal
import threading
from typing import Any

from ray.experimental.internal_kv import _internal_kv_exists, _internal_kv_get, _internal_kv_put
from ray.train import Checkpoint
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2.torch.torch_trainer import TorchTrainer

NOT_NEEDED = {
    "DatasetsCallback",  # serves Ray Data: here the workers read the images themselves
    "PlacementGroupCleanerCallback",  # Ray gives back what a job had, and tune/run/placement_groups.py what a trial had
}

NAMESPACE = "pirl"
"""Of Ray's key-value store, which the driver and all of its workers see."""


class LeanTrainer(TorchTrainer):
    """Runs a function on Ray Train's workers, without the processes that serve others."""

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return [callback for callback in callbacks if type(callback).__name__ not in NOT_NEEDED]


class LoneTrainer(LeanTrainer):
    """The same on a Ray that is there for this run only."""

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        arguments["scaling_policy"] = Unannounced(arguments["scaling_policy"].scaling_config)
        return super()._initialize_and_run_controller(**arguments)


class Unannounced(FixedScalingPolicy):
    """As many workers as were asked for, of which no autoscaler is told."""

    def after_controller_start(self, train_run_context: Any) -> None:
        """Does not start the actor that autoscalers ask: there are none."""

    def _maybe_send_resource_request(self) -> None:
        """Tells nobody."""


def end_log_monitor() -> None:
    """Ends the process that looks for output ten times a second, in a Ray that this process has started."""
    import ray

    node: Any = ray._private.worker._global_node
    node.kill_log_monitor(check_alive=False)


def take_sigterm_back() -> None:
    """Gives SIGTERM back to Python's handler: Ray puts one before it that prints where its code was."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM) or signal.SIG_DFL)


def shorten_lost_workers() -> None:
    """Has what Ray prints of a process that it has lost, with all that may have been the cause, be one line."""
    from ray._private import worker

    print_as_ray_does = worker.print_to_stdstream

    def print_shortly(data: dict[str, Any], ignore_prefix: bool) -> None:
        lines = [lost_worker(line) for line in data.get("lines", [])]
        print_as_ray_does({**data, "lines": lines}, ignore_prefix)

    worker.print_to_stdstream = print_shortly


def lost_worker(line: str) -> str:
    """One line for a process that was lost; any other text as it is."""
    found = re.match(r"A worker died or was killed .*?Worker IP address: (\S+) .*?Worker PID: (\d+)", line, re.DOTALL)
    return f"process {found[2]} on {found[1]} was lost: killed from outside, or it crashed" if found else line


def tell_workers(word: str) -> None:
    """Leaves a word for all processes of this Ray."""
    _internal_kv_put(word.encode(), b"1", namespace=NAMESPACE)


def is_told(word: str) -> bool:
    """Whether some process has left it."""
    return bool(_internal_kv_exists(word.encode(), namespace=NAMESPACE))


def leave_text(key: str, text: str) -> None:
    """Leaves a text for all processes of this Ray, in place of the one before."""
    _internal_kv_put(key.encode(), text.encode(), overwrite=True, namespace=NAMESPACE)


def left_text(key: str) -> str:
    """The text that some process has left there; empty if none has."""
    return (_internal_kv_get(key.encode(), namespace=NAMESPACE) or b"").decode()


def keep_keys_of_stores() -> None:
    """Has Tune hand the driver's keys of a store to no trial: each node has its own, and Ray writes them into logs."""
    from ray.tune.execution import class_cache

    class_cache.ENV_VARS_TO_PROPAGATE = {
        name for name in class_cache.ENV_VARS_TO_PROPAGATE if not name.startswith("AWS_")
    }


def raised_by(failure: BaseException) -> BaseException | None:
    """What a worker raised, out of what Ray makes of it."""
    return getattr(failure, "_base_exc", None)


def kept_checkpoint(name: str) -> Checkpoint:
    """In a worker of Ray Train: the checkpoint of this name in the run folder, however it came there."""
    import ray.train

    storage = ray.train.get_context().get_storage()
    return Checkpoint(storage.build_checkpoint_path_from_name(name), storage.storage_filesystem)


def placement_groups(*, left: bool) -> list[bytes]:
    """The ids of this job's placement groups, and of those that Ray has forgotten to remove.

    Ray removes a group with the job and the actor that asked for it; one that it is asked for while it ends these
    it keeps for ever, and what is in it is given to nobody.

    Args:
        left: Of this job only those that were asked for by an actor that has ended.
    """
    import ray
    from ray._private.state import state as untyped  # of its public table nobody learns who asked for a group
    from ray.core.generated.gcs_pb2 import PlacementGroupTableData  # type: ignore[attr-defined]

    state: Any = untyped
    accessor = state._connect_and_get_accessor()
    table = map(PlacementGroupTableData.FromString, accessor.get_placement_group_table())
    groups = [group for group in table if group.state != PlacementGroupTableData.REMOVED]
    if not groups:
        return []
    job: str = ray.get_runtime_context().get_job_id()
    ended = {entry["JobID"] for entry in state.job_table() if entry["IsDead"]}

    def is_left(group: Any) -> bool:
        if ray.ActorID(group.creator_actor_id).is_nil():  # a driver asked for it, as Tune does for its trials
            return group.creator_job_id.hex() in ended
        return bool(state.actor_table(group.creator_actor_id.hex()).get("State", "DEAD") == "DEAD")

    return [
        group.placement_group_id
        for group in groups
        if (group.creator_job_id.hex() == job and not left)
        or (group.creator_job_id.hex() in {job} | ended and not group.is_detached and is_left(group))
    ]


def remove_placement_groups(ids: list[bytes]) -> None:
    """Removes placement groups, with all that runs in them."""
    from ray._raylet import PlacementGroupID
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    for key in ids:
        remove_placement_group(PlacementGroup(PlacementGroupID(key)))
