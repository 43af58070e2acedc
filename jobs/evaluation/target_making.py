"""ClusterFit's steps: features, clusters, training. Each is there when its files are, and is not made again."""

import hashlib
import json
import time
from dataclasses import replace
from typing import Any

from jobs.evaluation import embedding
from jobs.evaluation.clusterfit_request import ClusterFitRequest
from jobs.live_line import LiveLine
from jobs.run.checks import check_request
from jobs.run.here import join_group, run_here
from pirl import dist
from pirl.clusterfit.from_features import classifier_of, own_classifier, pseudo_labels_of
from pirl.data import pseudo_labels
from pirl.data.dataset import Dataset
from pirl.data.described import description
from pirl.errors import ConfigError
from pirl.methods.models import TAPS
from pirl.runs import learned
from pirl.runs.run import Run, open_run
from pirl.runs.weights import Weights, read_weights

LOOK_S = 1.0
"""Between two looks of other ranks for what the first one makes."""


def check(request: ClusterFitRequest) -> Run:
    """The run, new or to go on; refuses, before anything starts or is written, what cannot be.

    Raises:
        ConfigError: What is wrong with it.
        StorageError: The store did not answer.
    """
    run = open_run(request.storage, request.name, request.config, request.resume)
    if request.embedding.tap not in TAPS:
        raise ConfigError(f"--tap {request.embedding.tap}: use one of {', '.join(TAPS)}")
    weights = read_weights(request.embedding.target)
    dataset = embedding.data_of(request.embedding, weights)
    asked = request.clusters.clusters if request.clusters else 0
    if asked > dataset.rows:
        raise ConfigError(f"--clusters {asked} is more than the {dataset.rows:,} images of {dataset.uri}: use fewer")
    if refuse_other_targets(request, weights):
        check_request(run, request.use_ray)
    elif run.checkpoint:
        raise ConfigError(f"{request.targets} is gone, with which the run began: put it back, or choose another --run")
    else:
        embedding.check(with_folder(request, weights).embedding)
        check_request(run, request.use_ray, to_learn=stand_in(request, dataset))
    return run


def stand_in(request: ClusterFitRequest, dataset: Dataset) -> Dataset:
    """The images with as many classes as there will be: it is yet to be found which image has which."""
    if request.clusters is None or request.distills:
        return dataset
    return replace(dataset, labels=[str(number) for number in range(request.clusters.clusters)], class_rows=None)


def name_of(request: ClusterFitRequest) -> str:
    """Of the files that are made."""
    return learned.TEACHER if request.distills else pseudo_labels.NAME


def refuse_other_targets(request: ClusterFitRequest, weights: Weights) -> bool:
    """Whether the targets are there; raises ConfigError where they were made otherwise than is asked for now."""
    known = description(request.targets, name_of(request))
    if known is None:
        return False
    for word, value in request.decides(features_of(request, weights)).items():
        if known.get(word) != value:
            raise ConfigError(
                f"the run {request.name!r} has targets with {word} {known.get(word)}, now {value}: choose another name "
                f"(--run {request.name}-2)"
            )
    return True


def features_of(request: ClusterFitRequest, weights: Weights) -> dict[str, Any]:
    """All that decides the features."""
    return embedding.embedder_of(request.embedding, weights).request()


def with_folder(request: ClusterFitRequest, weights: Weights) -> ClusterFitRequest:
    """The same, with a place for the features that is theirs alone, for other numbers of clusters too."""
    key = hashlib.sha256(json.dumps(features_of(request, weights)).encode()).hexdigest()[:16]
    return replace(request, embedding=replace(request.embedding, out=request.storage / ".features" / key))


def carry_out(request: ClusterFitRequest, run: Run, live: LiveLine) -> int:
    """Does what is left of the three steps; returns the exit code. Raises as embedding, k-means and training do."""
    weights = read_weights(request.embedding.target)
    request, made = with_folder(request, weights), refuse_other_targets(request, weights)
    if request.use_ray:
        from jobs.run.on_ray import connected, run_connected

        with live, connected():
            if not made:
                if request.clusters:
                    embedding.embed_connected(request.embedding, live.print)
                make_targets(request, weights, live.print)
            return run_connected(run, live)
    device = join_group(use_gpu=request.config.cluster.gpus_per_worker > 0)
    if not made:
        say = live.print if dist.rank() == 0 else lambda line: None
        with live:
            if request.clusters:
                embedding.work(request.embedding, device, say)
            if dist.rank() == 0:
                make_targets(request, weights, say)
            while description(request.targets, name_of(request)) is None:  # no collective: it would give up waiting
                time.sleep(LOOK_S)
    return run_here(run, live)


def make_targets(request: ClusterFitRequest, weights: Weights, say: embedding.Say) -> None:
    """Writes what the new network learns, from the features or of the network itself; on one rank."""
    features = features_of(request, weights)
    dataset = embedding.data_of(request.embedding, weights)
    about = {"weights": weights.about(), "data_uri": dataset.uri, **request.decides(features)}
    if request.clusters is None:
        learned.write_teacher(request.targets, weights, own_classifier(weights), {**about, "classifier": "its own"})
        return
    found = pseudo_labels_of(request.embedding.out, request.clusters, request.config.seed, about, say)
    if request.distills:
        classifier = classifier_of(found, request.embedding.tap)
        learned.write_teacher(request.targets, weights, classifier, {**found.about, "classifier": "centroids"})
    else:
        pseudo_labels.write_pseudo_labels(request.targets, found)
