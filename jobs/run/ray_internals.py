"""Ray's TorchTrainer without the processes that serve others.

Each of them takes two to eight seconds of a core to start and about a hundredth of one while the run lasts, and has
no switch in Ray. Where a later Ray calls them otherwise they are there again, and tests/test_ray.py says so.
"""

from typing import Any

from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2.torch.torch_trainer import TorchTrainer

NOT_NEEDED = {
    "DatasetsCallback",  # serves Ray Data: here the workers read the images themselves
    "PlacementGroupCleanerCallback",  # Ray gives back what a job had, and tune/run/placement_groups.py what a trial had
}


class LeanTrainer(TorchTrainer):
    """Runs a function on Ray Train's workers."""

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
