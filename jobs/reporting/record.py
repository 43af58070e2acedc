"""What a run has left in its folder until now, and the runs and sweeps below a folder."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jobs.reporting.appended import MOST, Appended, LogStory, Numbers
from pirl.config import Config, from_dict, leaves
from pirl.errors import ConfigError
from pirl.runs.run_files import CHECKPOINT, RunFile
from pirl.storage.folder import Folder
from pirl.storage.reading import FileInfo

SWEEP = "sweep.json"
EVALUATION = re.compile(r"evaluation/[^/]+\.json")
_EVENTS = re.compile(r"events\.out\.tfevents\.(\d+)\.")
_READ = {RunFile.CONFIG, RunFile.METRICS, RunFile.LOG, RunFile.RESULT, RunFile.FAILURE, RunFile.STOPPED}


@dataclass(eq=False)
class RunRecord:
    """A run, as its folder tells of it. It is read by `look`, which reads again only what has changed.

    Attributes:
        files: Of the folder, as listed last.
        settings: All of config.json, by dotted name.
        config: The same, checked; None where this version does not understand it, and `problems` says why.
        numbers: Of metrics.jsonl.
        story: Of train.log.
        result: What result.json holds, if the run is done.
        evaluations: Reports in evaluation/, by the names of their files without `.json`.
        failure: Why it cannot go on.
        stopped: After which epoch the scheduler of a sweep stopped it, by metric.
        trial: What its sweep says of it, where it is one of a sweep.
        problems: Files that are there and cannot be read, and why.
    """

    folder: Folder
    files: Mapping[str, FileInfo] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    config: Config | None = None
    numbers: Numbers = field(default_factory=Numbers)
    story: LogStory = field(default_factory=LogStory)
    result: dict[str, Any] | None = None
    evaluations: dict[str, dict[str, Any]] = field(default_factory=dict)
    failure: dict[str, Any] | None = None
    stopped: dict[str, Any] | None = None
    trial: Mapping[str, Any] | None = None
    problems: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._metrics = Appended(self.folder / RunFile.METRICS)
        self._log = Appended(self.folder / RunFile.LOG)

    @property
    def name(self) -> str:
        """That of its folder."""
        return self.folder.name

    @property
    def batch_size(self) -> int:
        """Images in a step; 1 where the config does not say."""
        told = self.settings.get("data.batch_size")
        return told if isinstance(told, int) and 0 < told < MOST else 1

    @property
    def began(self) -> list[float]:
        """When each attempt began, as Unix time: TensorBoard's files are called so."""
        return sorted(float(found[1]) for name in self.files if (found := _EVENTS.match(name)))

    @property
    def last_sign(self) -> float | None:
        """When something in its folder was written last, as Unix time."""
        return max((info.modified for info in self.files.values() if info.modified is not None), default=None)

    def look(self, files: Mapping[str, FileInfo]) -> bool:
        """Reads what has changed of the files of its folder; returns whether something had. Raises StorageError."""
        before, self.files = self.files, files
        names = {name for name in {*before, *files} if name in _READ or EVALUATION.fullmatch(name)}
        changed = {name for name in names if before.get(name) != files.get(name)}
        for name in sorted(changed - {RunFile.METRICS, RunFile.LOG}):
            self.problems.pop(name, None)
            self._take(name, self._parsed(name) if name in files else None)
        self._follow()
        return bool(changed)

    def _follow(self) -> None:
        anew, lines = self._metrics.news(self.files.get(RunFile.METRICS))
        self.numbers = Numbers() if anew else self.numbers
        for line in lines:
            self.numbers.add(line)
        anew, lines = self._log.news(self.files.get(RunFile.LOG))
        self.story = LogStory() if anew else self.story
        for line in lines:
            self.story.add(line)

    def _take(self, name: str, content: dict[str, Any] | None) -> None:
        if name == RunFile.CONFIG:
            self._take_config(content or {})
        elif name == RunFile.RESULT:
            self.result = content
        elif name == RunFile.FAILURE:
            self.failure = content
        elif name == RunFile.STOPPED:
            self.stopped = content
        else:
            key = name.removeprefix("evaluation/").removesuffix(".json")
            self.evaluations.pop(key, None)
            if content is not None:
                self.evaluations[key] = content

    def _take_config(self, content: dict[str, Any]) -> None:
        self.settings, self.config = dict(_flat(content)), None
        if RunFile.CONFIG in self.problems or not content:
            return
        try:
            self.config = from_dict(content)
            self.settings = leaves(self.config)
        except ConfigError as error:
            self.problems[RunFile.CONFIG] = f"it is not of this version: {error}"

    def _parsed(self, name: str) -> dict[str, Any] | None:
        """What a file with JSON holds; None, and a problem, where that is no object."""
        try:
            content = json.loads(self.folder.read_bytes(name))
        except FileNotFoundError:  # since it was listed
            return None
        except ValueError as error:
            self.problems[name] = f"it is no whole JSON: {error}"
            return None
        if isinstance(content, dict):
            return content
        self.problems[name] = "it is no JSON object"
        return None


def _flat(content: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    """The settings of a config.json of any version, by dotted name."""
    for name, value in content.items():
        if isinstance(value, dict):
            yield from ((f"{name}.{inner}", each) for inner, each in value.items())
        else:
            yield name, value


@dataclass(eq=False)
class SweepRecord:
    """What a sweep.json says: the command, the metric, the best trial, and how each stands."""

    folder: Folder
    content: dict[str, Any] = field(default_factory=dict)
    info: FileInfo | None = None
    problem: str | None = None

    def look(self, info: FileInfo) -> bool:
        """Reads it again if it has changed, and returns whether it had; raises StorageError."""
        if info == self.info:
            return False
        self.info, self.problem = info, None
        try:
            content = json.loads(self.folder.read_bytes(SWEEP))
            self.content = {**content, "trials": [{**trial, "name": str(trial["name"])} for trial in content["trials"]]}
        except FileNotFoundError:
            pass
        except (ValueError, TypeError, KeyError) as error:
            self.problem = f"{self.folder / SWEEP} cannot be read: {type(error).__name__}: {error}"
        return True

    def trials(self) -> dict[str, dict[str, Any]]:
        """What it says of each, by name."""
        return {trial["name"]: trial for trial in self.content.get("trials", [])}


@dataclass(eq=False)
class Collection:
    """All runs below some folders; `look` reads again only what has changed.

    Attributes:
        places: Runs, sweeps, or folders of them.
        runs: By the URLs of their folders, in order.
        sweeps: The same.
    """

    places: Sequence[Folder]
    runs: dict[str, RunRecord] = field(default_factory=dict)
    sweeps: dict[str, SweepRecord] = field(default_factory=dict)

    def look(self) -> bool:
        """Lists the folders and reads what has changed; returns whether something had. Raises StorageError."""
        there: set[str] = set()
        changed = False
        for place in self.places:
            by_run, sweeps = split_by_run(place.files())
            for path, files in by_run.items():
                changed |= self._run(place, path, there).look(files)
            for path, info in sweeps.items():
                folder = place / path if path else place
                there.add(folder.uri)
                sweep = self.sweeps.setdefault(folder.uri, SweepRecord(folder))
                changed |= sweep.look(info)
                for name, trial in sweep.trials().items():  # those that wait have no folder yet
                    run = self._run(folder, name, there)
                    changed |= run.trial != trial
                    run.trial = trial
        gone = {*self.runs, *self.sweeps} - there
        for uri in gone:
            self.runs.pop(uri, None)
            self.sweeps.pop(uri, None)
        return changed or bool(gone)

    def _run(self, place: Folder, path: str, there: set[str]) -> RunRecord:
        folder = place / path if path else place
        there.add(folder.uri)
        return self.runs.setdefault(folder.uri, RunRecord(folder))


def split_by_run(files: Mapping[str, FileInfo]) -> tuple[dict[str, dict[str, FileInfo]], dict[str, FileInfo]]:
    """The files of each run below a folder, and the sweep.json of each sweep, by the paths of their folders.

    A run is a folder with a config.json that is not a checkpoint; the folder itself has the path "".
    """
    folders = {name.rpartition("/")[0] for name in files if name.rpartition("/")[2] == RunFile.CONFIG}
    runs = sorted(each for each in folders if not CHECKPOINT.fullmatch(each.rpartition("/")[2]))
    by_run: dict[str, dict[str, FileInfo]] = {run: {} for run in runs}
    for name, info in files.items():
        owner = name
        while owner:
            owner = owner.rpartition("/")[0]
            if owner in by_run:
                by_run[owner][name.removeprefix(f"{owner}/" if owner else "")] = info
                break
    sweeps = {name.rpartition("/")[0]: info for name, info in files.items() if name.rpartition("/")[2] == SWEEP}
    return by_run, sweeps
