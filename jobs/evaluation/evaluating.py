"""An evaluation: checked, then carried out in this process, by those of torchrun, or by workers of Ray."""

import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as td

from jobs.evaluation.evaluation_request import EvaluationRequest, open_images
from jobs.run.checks import check_gpus, check_shares_of_gpus
from jobs.run.here import join_group
from pirl import dist
from pirl.data.dataset import Dataset
from pirl.errors import ConfigError
from pirl.evaluate.ensemble import Ensemble
from pirl.evaluate.evaluate import PROTOCOLS
from pirl.evaluate.features import rows_of
from pirl.evaluate.reports import as_text, report_of, write_report
from pirl.evaluate.splits import numbered_otherwise, unknown_to, why_not
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
    if request.ensemble:
        _check_ensemble(request, weights, read_weights(request.ensemble))
    if request.config.cluster.gpus_per_worker and not request.use_ray:
        check_gpus(request.config.cluster.gpus_per_worker)
    train, test = splits_of(request, weights)
    if request.test and test is not None and test.fingerprint == train.fingerprint:
        raise ConfigError(f"--test {test.uri} are the images that fit, {train.uri}: name images that were held out")
    inside = not train.folder.uri.startswith(f"{request.out.uri.rstrip('/')}/")
    if inside and train.folder.overlaps(request.out):
        raise ConfigError(
            f"--out {request.out} lies in the folder of the images {train.uri}: name a folder apart from them"
        )
    for name in request.protocols:
        if PROTOCOLS[name].voc == "only" and not isinstance(train, VocSplit):
            raise ConfigError(f"{name} needs boxes, and {train.uri} has none: add --data with {LAYOUT}")
    takes = [name for name in request.protocols if PROTOCOLS[name].voc != "no" and isinstance(train, VocSplit)]
    needing = [name for name in request.protocols if PROTOCOLS[name].labels and name not in takes]
    if needing and (reason := why_not(train, test)):
        raise ConfigError(f"{', '.join(needing)}: {reason}")
    if test is not None and (reason := numbered_otherwise(train, test)):
        raise ConfigError(reason)
    fit = replace(train, rows=rows_of(train, request.max_images))
    count = replace(test, rows=rows_of(test, request.max_images)) if test is not None else None
    for name, settings in request.protocols.items():
        if refuse := PROTOCOLS[name].refuse:
            refuse(settings, fit, count)


def _check_ensemble(request: EvaluationRequest, weights: Weights, other: Weights) -> None:
    """Raises ConfigError for networks that cannot stand side by side."""
    if other.stem != weights.stem:
        raise ConfigError(
            f"--ensemble {other.uri} has the {other.stem} stem, and {weights.uri} the {weights.stem} one: their maps "
            "have other sides, so use two networks of one stem"
        )
    sides = {each.image_size() for each in (weights, other) if each.config}
    if len(sides) > 1 and request.image_size is None:
        raise ConfigError(
            f"--ensemble {other.uri} was trained on views of another size than {weights.uri} "
            f"({' and '.join(map(str, sorted(sides)))} px): add --image-size, which both get"
        )
    if other.sha256 == weights.sha256:
        raise ConfigError(f"--ensemble {other.uri} has the weights of {weights.uri}: name another network")
    if boxes := [name for name in request.protocols if PROTOCOLS[name].voc == "only"]:
        raise ConfigError(f"{boxes[0]} fine-tunes a single network: leave --ensemble away")


def splits_of(request: EvaluationRequest, weights: Weights) -> tuple[Dataset, Dataset | None]:
    """The images that fit and those that are counted."""
    if not request.data and weights.config is None:
        raise ConfigError(f"{request.target} is a file, which has no data of its own: add --data URI")

    data, own = request.config.data, weights.config.data if weights.config else None
    place, test = (Folder(uri, data.storage_options, data.deadline_s) for uri in (request.data, request.test))
    boxes = any(PROTOCOLS[name].voc == "only" for name in request.protocols)
    if (request.data and (boxes or years_of(place))) or (request.test and years_of(test)):
        voc = open_voc(place, test if request.test else None)
        return voc, voc.held_out()
    train = open_images(data, request.data, own)
    return train, open_images(data, request.test, None) if request.test else train.held_out()


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
    if subject.test is not None and (strange := unknown_to(subject.train, subject.test)):
        subject.say(
            f"images of {', '.join(strange[:5])} in {subject.test.uri} count as wrong: no image that fits is one"
        )
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
    lines = [weights.in_words(), f"fitted to {_used(subject, subject.train)}" + _of_test(subject), as_text(found)]
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
        store=FeatureStore(features_folder(request)),
        scratch=request.out,
        loader_processes=request.config.cluster.loader_processes,
        config=config,
        # Heads and bank are of one network, and of PIRL.
        checkpoint=weights.checkpoint if config and config.has_bank and not others else None,
    )


def features_folder(request: EvaluationRequest) -> Path:
    """Where features stay on this node."""
    return Path(request.features or Path(tempfile.gettempdir()) / f"pirl-features-{os.getuid()}")


def _of_test(subject: Subject) -> str:
    return f", counted on {_used(subject, subject.test)}" if subject.test else ""


def _used(subject: Subject, split: Dataset) -> str:
    """The images, and how many of them where that is not all."""
    rows = rows_of(split, subject.limit)
    return split.uri + ("" if rows == split.rows else f" (the first {rows:,} of {split.rows:,} images)")


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

    check_shares_of_gpus(request.config.cluster)
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
