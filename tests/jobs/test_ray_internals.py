"""What jobs/run/ray_internals.py takes from Ray is there; without some of it nothing would fail but what it is for."""

import inspect
from importlib.metadata import version

import pytest
import ray
import ray._private.node
from ray._private import worker
from ray._private.state import GlobalState
from ray.core.generated.gcs_pb2 import PlacementGroupTableData
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2._internal.execution.storage import StorageContext
from ray.train.v2.torch.torch_trainer import TorchTrainer
from ray.tune import Trainable
from ray.tune.execution import class_cache

from jobs.run import ray_internals
from jobs.run.outcome import in_words

SEEN = "2.60"
"""The version of Ray in which all was looked at, and the first line of ray_internals.py says so."""


def test_the_version_is_the_one_that_was_looked_at() -> None:
    assert version("ray").startswith(SEEN), f"look at jobs/run/ray_internals.py again, which was seen in Ray {SEEN}"
    assert SEEN in (inspect.getdoc(ray_internals) or "").splitlines()[0]


def test_the_processes_that_are_left_out_are_there_to_be_left_out() -> None:
    assert {DatasetsCallback.__name__, PlacementGroupCleanerCallback.__name__} == ray_internals.NOT_NEEDED
    made = inspect.getsource(TorchTrainer._create_default_callbacks)
    assert [name for name in ray_internals.NOT_NEEDED if name not in made] == []
    for method in ("after_controller_start", "_maybe_send_resource_request"):
        assert hasattr(FixedScalingPolicy, method), method
    assert "self._initialize_and_run_controller(" in inspect.getsource(TorchTrainer.fit)
    assert "scaling_policy=" in inspect.getsource(TorchTrainer.fit)


def test_a_lost_process_is_told_in_one_line_and_nobody_is_accused(monkeypatch) -> None:
    assert "print_to_stdstream(" in inspect.getsource(worker.listen_error_messages)
    guesses = "Some common causes include: (1) the process was killed by the OOM killer due to high memory usage, (2) x"
    said = f"A worker died or was killed while x. Worker IP address: 10.0.0.2 Worker port: 1 Worker PID: 7 y. {guesses}"
    shown: list[str] = []
    monkeypatch.setattr(worker, "print_to_stdstream", lambda data, ignore_prefix: shown.extend(data["lines"]))
    ray_internals.shorten_lost_workers()
    worker.print_to_stdstream({"lines": [said, "another word"], "pid": "raylet", "is_err": False}, ignore_prefix=False)
    assert shown == ["process 7 on 10.0.0.2 was lost: killed from outside, or it crashed", "another word"]
    error = RuntimeError(f"it died\n\tpid: 7\nIts end: end of file. {guesses}")
    assert in_words(error) == "it died\n\tpid: 7\nIts end: end of file."


def test_tune_hands_no_keys_of_a_store_to_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(class_cache, "ENV_VARS_TO_PROPAGATE", class_cache.ENV_VARS_TO_PROPAGATE)
    assert "AWS_SECRET_ACCESS_KEY" in class_cache.ENV_VARS_TO_PROPAGATE, "else there is nothing to keep"
    ray_internals.keep_keys_of_stores()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    assert "hidden" not in str(vars(class_cache._ActorClassCache().get(Trainable)))


def test_what_a_worker_raised_is_in_what_ray_makes_of_it() -> None:
    error = MemoryError("2 GB are not there")
    assert ray_internals.raised_by(UserExceptionWithTraceback(error, "Traceback")) is error
    assert ray_internals.raised_by(ValueError("of another kind")) is None


def test_what_is_called_is_there() -> None:
    assert "check_alive" in inspect.signature(ray._private.node.Node.kill_log_monitor).parameters
    assert hasattr(StorageContext, "build_checkpoint_path_from_name")
    assert hasattr(GlobalState, "_connect_and_get_accessor")
    assert {"creator_job_id", "creator_actor_id", "placement_group_id", "state"} <= set(
        PlacementGroupTableData.DESCRIPTOR.fields_by_name
    )
