"""Every error that a user can see. The message says what was given, what is allowed, and what to type."""


class ConfigError(ValueError):
    """A request that cannot be carried out; the message says what was given, allowed and what to type."""


class StorageError(OSError):
    """A store did not do what it was asked for; says what, how often it was tried, and the last cause."""


class StoreRefusedError(StorageError):
    """A store does not do what it was asked for, and would not later: forbidden, or a wrong request."""


class ObjectRefusedError(StoreRefusedError):
    """A store does not give one object, as one in an archive; of the others this says nothing."""


class CorruptImage(RuntimeError):  # noqa: N818 - what is wrong says more than Error
    """Bytes of a shard are not those that were written, or are not an image."""


class TrainingDiverged(RuntimeError):  # noqa: N818 - what is wrong says more than Error
    """The loss is no longer a number, from the weights that `step` steps have made."""

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step


class TrainingStopped(Exception):  # noqa: N818 - it was asked for
    """The training was asked to stop, and its checkpoint holds all `step` steps."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped after step {step}")
        self.step = step


class NameTakenError(ConfigError):
    """The name of a run stands for `what` instead; the remedy of a sweep, which names its runs itself, is another."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what, remedy)  # both: so it can be pickled
        self.what = what

    def __str__(self) -> str:
        return "\n".join(self.args)


class SlurmSilent(RuntimeError):  # noqa: N818 - what it is, not that it is an error
    """SLURM gives no answer, so what it would say of a job is not known; says which command failed, and how."""


class NotStarted(RuntimeError):  # noqa: N818 - what it is, not that it is an error
    """Ray or the nodes did not come up, and why; the job goes back to the queue."""


class DevClusterError(Exception):
    """What is wrong with the cluster of virtual hosts, and what to type."""


class BrokenImage(RuntimeError):  # noqa: N818 - what is wrong says more than Error
    """An image cannot be used, and the request was strict."""


class RunFailed(RuntimeError):  # noqa: N818 (as TrainingDiverged: what happened, not a mistake of the program)
    """A run that ended before its end; the message says why and what to do."""


class RunStopped(RunFailed):
    """A run that was asked to stop: it saved a checkpoint, and nothing is wrong with it."""
