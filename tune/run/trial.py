"""One trial, as Ray Tune sees it: a run of Ray Train, and what is measured of it, read from its run folder.

The run folder is all the memory that there is. What was measured before a sweep was cut off is told to the scheduler
again, in the same order, and the run goes on from its newest checkpoint; nothing of Tune's own is restored.
"""

import os
import threading
import time
from collections import deque
from contextlib import suppress
from typing import Any

from ray import tune

from jobs.run.on_ray import fit
from jobs.run.outcome import interruption, settle
from pirl.config import from_json
from pirl.errors import RunFailed, RunStopped, StorageError
from pirl.runs.run import open_run
from tune.curve import Metric, Point, curve_of, trained, without_end

ENVIRONMENT = {
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "1000000",  # a trial that is ready waits for the one before it
}
"""Passed on by Ray Train to those that run the trial."""

QUIET_S = 2.0
"""Between two words of how far the training is."""


class RunTrial(tune.Trainable):
    """A run on Ray Train's workers, which this process starts and watches."""

    def setup(self, config: dict[str, Any]) -> None:
        """Goes on with the run, in a thread.

        Args:
            config: `{"trial": {"storage": Folder, "name", "config": JSON, "metric", "every"}}`
        """
        os.environ |= ENVIRONMENT
        asked = config["trial"]
        self.metric: Metric = asked["metric"]
        self.every: int = asked["every"]
        self.run = open_run(asked["storage"], asked["name"], from_json(asked["config"]), "auto")
        self.told = 0
        self.ready: deque[Point] = deque()
        self.trained = self.said = trained(self.run.folder, self.run.config)
        self.quiet_until = 0.0
        self.error: str | None = None
        self.stopped = False
        # A daemon: the end of this process ends the run and its workers, whatever the thread does.
        self.training = threading.Thread(target=self.carry_out, daemon=True)
        self.training.start()

    def step(self) -> dict[str, Any]:
        """Waits for the next measurement, for some progress to tell of, or for the end, told with the last one."""
        every_s = 0.25 if self.run.folder.path else 10.0
        while True:
            running = self.training.is_alive()
            began = time.monotonic()
            self.look()
            if self.ready:
                return {**self.ready.popleft()._asdict(), "done": False}
            if not running:
                return self.end()
            if self.trained != self.said and began > self.quiet_until:
                self.said, self.quiet_until = self.trained, began + QUIET_S
                return {"told": self.trained, "done": False}
            self.training.join(max(every_s, 10 * (time.monotonic() - began)))

    def look(self) -> None:
        """Takes what was measured since the last time; the last measurement waits for the end."""
        with suppress(StorageError):  # asked again the next time
            for point in self.curve():
                if self.told < point.epoch < self.run.config.optim.epochs:
                    self.told = point.epoch
                    self.ready.append(point)
            self.trained = trained(self.run.folder, self.run.config)

    def curve(self) -> list[Point]:
        """What was measured until now."""
        return curve_of(self.run.folder, self.run.config, self.metric, self.every)

    def end(self) -> dict[str, Any]:
        """How the run ended; of one that was asked to stop, that it is to go on."""
        if self.stopped:
            return {"done": True, "ended": True, "to_go_on": True}
        if self.error:
            return {"done": True, "ended": True, "error": self.error}
        curve = self.curve()
        if problem := without_end(curve, self.run.folder, self.run.config, self.metric):
            return {"done": True, "ended": True, "error": problem}
        return {**curve[-1]._asdict(), "done": True, "ended": True}

    def carry_out(self) -> None:
        """Trains until the run is done or cannot go on."""
        if self.run.result is not None:  # the process before this one was lost after the end
            return
        began = time.time()
        try:
            with interruption() as ended:
                fit(self.run)
            settle(self.run, began, ended.why)
        except RunStopped:
            self.stopped = True
        except (RunFailed, OSError) as error:
            self.error = str(error).removeprefix("error: ").partition("\n")[0]  # without what to type for a run alone
        except Exception as error:  # nobody else sees this thread
            self.error = repr(error)
