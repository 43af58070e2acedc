"""An evaluation: checked, then carried out in this process, by those of torchrun, or by workers of Ray."""

import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as td

from jobs.evaluation.evaluation_request import EvaluationRequest
from jobs.run.here import join_group
from pirl import dist
from pirl.data.dataset import Dataset, open_data
from pirl.errors import ConfigError
from pirl.evaluate.ensemble import Ensemble
from pirl.evaluate.evaluate import PROTOCOLS
from pirl.evaluate.reports import as_text, report_of, write_report
from pirl.evaluate.splits import why_not
from pirl.evaluate.store import FeatureStore, checksum
from pirl.evaluate.subject import Subject
from pirl.evaluate.voc.voc_folder import LAYOUT, VocSplit, open_voc, years_of
from pirl.methods.models import Trunk, new_trunk
from pirl.runs.weights import Weights, read_weights
from pirl.storage.folder import Folder
from pirl.storage.temporary import remove_temporary_folder

RAY_TABLE = "table.txt"
"""How the first worker on Ray hands over what is to be shown."""


RAY_MARKER = ".validate_storage_marker"
"""What Ray Train leaves in a folder to see that all can write there."""


def check(request: EvaluationRequest) -> None:
    """Refuses, before anything starts, weights that are none, data that is missing or has no labels.

    Raises:
        ConfigError: What is wrong with it.
        StorageError: The store did not answer.
    """
    weights = read_weights(request.target)
    other = read_weights(request.ensemble) if request.ensemble else None
    if other and other.stem != weights.stem:
        raise ConfigError(
            f"--ensemble {other.uri} has the {other.stem} stem, and {weights.uri} the {weights.stem} one: their maps "
            "have other sides, so use two networks of one stem"
        )
    train, test = splits_of(request, weights)
    for name in request.protocols:
        if PROTOCOLS[name].voc == "only" and not isinstance(train, VocSplit):
            raise ConfigError(f"{name} needs boxes, and {train.uri} has none: add --data with {LAYOUT}")
    takes = [name for name in request.protocols if PROTOCOLS[name].voc != "no" and isinstance(train, VocSplit)]
    needing = [name for name in request.protocols if PROTOCOLS[name].labels and name not in takes]
    if needing and (reason := why_not(train, test)):
        raise ConfigError(f"{', '.join(needing)}: {reason}")
    for name, settings in request.protocols.items():
        if refuse := PROTOCOLS[name].refuse:
            refuse(settings, train, test)


def splits_of(request: EvaluationRequest, weights: Weights) -> tuple[Dataset, Dataset | None]:
    """The images that fit and those that are counted."""
    if not request.data and weights.config is None:
        raise ConfigError(f"{request.target} is a file, which has no data of its own: add --data URI")

    data = request.config.data

    def opened(uri: str) -> Dataset:
        return open_data(data.model_copy(update={"uri": uri}))

    own = weights.config.data if weights.config else None
    place, test = (Folder(uri, data.storage_options, data.deadline_s) for uri in (request.data, request.test))
    boxes = any(PROTOCOLS[name].voc == "only" for name in request.protocols)
    if (request.data and (boxes or years_of(place))) or (request.test and years_of(test)):
        voc = open_voc(place, test if request.test else None)
        return voc, voc.held_out()
    train = opened(request.data) if request.data or own is None else open_data(own)
    return train, opened(request.test) if request.test else train.held_out()


def run_evaluation(request: EvaluationRequest) -> int:
    """Carries it out where it is asked for; returns the exit code."""
    if request.use_ray:
        return _on_ray(request)
    device = join_group(use_gpu=request.config.cluster.gpus_per_worker > 0)
    try:
        table = work(request, device, lambda line: print(line, file=sys.stderr, flush=True))
    finally:
        if td.is_initialized():
            td.destroy_process_group()
    if table:
        print(table)
    return 0


def work(request: EvaluationRequest, device: torch.device, say: Callable[[str], None]) -> str:
    """What every rank does; returns what rank 0 shows, "" elsewhere."""
    first = dist.rank() == 0
    weights = read_weights(request.target)
    others = [read_weights(request.ensemble)] if request.ensemble else []
    subject = subject_of(request, weights, others, device, say if first else lambda line: None)
    about = {
        "weights": {**weights.about(), "trunk_sha256": checksum(subject.trunk)},
        **({"ensemble": others[0].about()} if others else {}),
        "network": {"arch": weights.arch, "width": weights.width, "stem": weights.stem},
        "command": list(request.command),
    }
    found = {}
    for name, settings in request.protocols.items():
        began = time.monotonic()
        subject.say(f"{name} …")
        outcome = PROTOCOLS[name].measure(subject, settings)
        if first:
            report = report_of(name, outcome, settings, subject, about, time.monotonic() - began)
            write_report(request.out, report, outcome.files)
        found[name] = outcome.measurements
    if not first:
        return ""
    lines = [f"{weights.in_words()}", f"fitted to {subject.train.uri}" + _of_test(subject), as_text(found)]
    return "\n".join([*lines, f"reports in {request.out}"])


def subject_of(
    request: EvaluationRequest,
    weights: Weights,
    others: Sequence[Weights],
    device: torch.device,
    say: Callable[[str], None],
) -> Subject:
    """The network, with others beside it in an ensemble, and its images."""
    train, test = splits_of(request, weights)
    config = weights.config
    torch.manual_seed(config.seed if config else request.seed)
    untrained = new_trunk(config.model) if config else Trunk(weights.arch, weights.width, weights.stem)
    trunk = weights.trunk()
    for other in others:
        trunk = Ensemble(trunk, other.trunk())
        untrained = Ensemble(untrained, Trunk(other.arch, other.width, other.stem))
    folder = Path(request.features or Path(tempfile.gettempdir()) / f"pirl-features-{os.getuid()}")
    return Subject(
        trunk=trunk.to(device),
        untrained=untrained.to(device) if request.random else None,
        train=train,
        test=test,
        image_size=weights.image_size(request.image_size),
        device=device,
        seed=request.seed,
        limit=request.max_images,
        skip=request.config.data.on_error == "skip",
        say=say,
        store=FeatureStore(folder),
        scratch=request.out,
        loader_processes=request.config.cluster.loader_processes,
        config=config,
        # Heads and bank are of one network, and of PIRL.
        checkpoint=weights.checkpoint if config and config.has_bank and not others else None,
    )


def _of_test(subject: Subject) -> str:
    return f", counted on {subject.test.uri}" if subject.test else ""


def _on_ray(request: EvaluationRequest) -> int:
    """On the cluster of RAY_ADDRESS, or on a Ray of its own; returns the exit code."""
    from jobs.run.on_ray import connected

    with connected():
        return _with_workers(request)


def _with_workers(request: EvaluationRequest) -> int:
    import ray
    from ray.train import RunConfig, ScalingConfig

    from clusters.preflight import check_resources, nodes_alive
    from jobs.run.outcome import in_words
    from jobs.run.ray_internals import LeanTrainer

    check_resources(request.config, nodes_alive())
    cluster = request.config.cluster
    resources = {"CPU": cluster.cpus_per_worker} | ({"GPU": cluster.gpus_per_worker} if cluster.gpus_per_worker else {})
    filesystem, storage = request.out.parent.arrow_filesystem()
    trainer_class: Any = LeanTrainer
    trainer = trainer_class(
        _in_worker,
        train_loop_config={"request": request},
        scaling_config=ScalingConfig(
            num_workers=cluster.workers, use_gpu=cluster.gpus_per_worker > 0, resources_per_worker=resources
        ),
        run_config=RunConfig(name=request.out.name, storage_path=storage, storage_filesystem=filesystem),
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        print(f"failed: {in_words(error)}", file=sys.stderr)
        return 1
    print(request.out.read(RAY_TABLE), end="")
    request.out.remove(RAY_TABLE, RAY_MARKER)
    return 0


def _in_worker(arguments: dict[str, Any]) -> None:
    from ray.train.torch import get_device

    request = arguments["request"]
    try:
        table = work(request, get_device(), print)
    finally:
        remove_temporary_folder()  # Ray ends this process without Python's clean-up
    if table:
        request.out.write(RAY_TABLE, table + "\n")
