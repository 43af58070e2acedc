"""What a network has learned, measured by the protocols of one table."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from pirl.config import Config
from pirl.data.dataset import Dataset
from pirl.evaluate.measurement import Measurement, Outcome
from pirl.evaluate.protocols import (
    auc,
    detection,
    few,
    finetune,
    health,
    invariance,
    knn,
    linear,
    linear_sgd,
    retrieval,
    svm,
)
from pirl.evaluate.subject import Subject
from pirl.sections import Section
from pirl.wording import counted


@dataclass(frozen=True)
class Protocol:
    """A way to judge a network.

    Attributes:
        measure: Called by every rank, which all return the same.
        settings: Typed as `--NAME.SETTING VALUE`; its docstring is the line of `--help`.
        labels: Whether it needs images with labels, in both splits.
        voc: Whether it takes PASCAL VOC, and nothing else.
        refuse: Raises ConfigError, before anything starts, for settings that the images cannot have.
    """

    measure: Callable[[Subject, Any], Outcome]
    settings: type[Section]
    labels: bool = True
    voc: Literal["no", "too", "only"] = "no"
    refuse: Callable[[Any, Dataset, Dataset | None], None] | None = None


PROTOCOLS = {
    "linear": Protocol(linear.measure, linear.Linear),
    "knn": Protocol(knn.measure, knn.KNN, refuse=knn.refuse),
    "few": Protocol(few.measure, few.Few, refuse=few.refuse),
    "auc": Protocol(auc.measure, auc.AUC, refuse=auc.refuse),
    "retrieval": Protocol(retrieval.measure, retrieval.Retrieval, labels=False, refuse=retrieval.refuse),
    "health": Protocol(health.measure, health.Health, labels=False, refuse=health.refuse),
    "invariance": Protocol(invariance.measure, invariance.Invariance, labels=False, refuse=invariance.refuse),
    "linear_sgd": Protocol(linear_sgd.measure, linear_sgd.LinearSGD, refuse=linear_sgd.refuse),
    "semi": Protocol(finetune.measure_semi, finetune.Semi, refuse=finetune.refuse),
    "finetune": Protocol(finetune.measure, finetune.Finetune, refuse=finetune.refuse),
    "svm": Protocol(svm.measure, svm.SVM, voc="too", refuse=svm.refuse),
    "detection": Protocol(detection.measure, detection.Detection, labels=False, voc="only", refuse=detection.refuse),
}
"""By their names on the command line. To add one, write a file into `protocols/`, and give it a line."""


def evaluate(subject: Subject, config: Config) -> dict[str, Any]:
    """Measures what a run ends with; called by every rank.

    Returns:
        What `result.json` holds, the same on every rank: `{"train_images", "test_images", "linear": {tap: accuracy},
        "knn": {"k", "temperature", "accuracy"}, "few": {"per_class", "draws", "accuracy", "deviation"}, "random": the
        same of the random trunk}`; accuracies are shares of 1.
    """
    vote, fitted = _vote(subject, config), few.Few()
    linears, votes = linear.measure(subject, linear.Linear()).measurements, knn.measure(subject, vote).measurements[0]
    drawn = few.measure(subject, fitted).measurements[0]

    def of(value: Callable[[Measurement], float | None]) -> dict[str, Any]:
        return {
            "linear": {each.name: value(each) for each in linears},
            "knn": {"k": vote.k[0], "temperature": vote.temperature, "accuracy": value(votes)},
            "few": {"per_class": fitted.per_class[0], "draws": fitted.draws, "accuracy": value(drawn)},
        }

    report = of(lambda each: each.value)
    report["few"]["deviation"] = drawn.deviation
    images = {f"{split}_images": len(subject.labelled(split).labels) for split in ("train", "test")}
    return {**images, **report, "random": of(lambda each: each.random)}


def evaluate_res5(subject: Subject, config: Config) -> dict[str, float]:
    """The numbers of `evaluate` that tell how far training is; called by every rank.

    Returns:
        `{"linear_res5", "knn"}`, shares of 1, equal to the numbers of `evaluate`.
    """
    vote = _vote(subject, config)
    (fitted,) = linear.measure(subject, linear.Linear(taps=("res5",))).measurements
    (voted,) = knn.measure(subject, vote).measurements
    return {"linear_res5": fitted.value, "knn": voted.value}


def _vote(subject: Subject, config: Config) -> knn.KNN:
    """As a config has it, with no more neighbours than there are."""
    settings, images = config.evaluation, len(subject.labelled("train").labels)
    return knn.KNN(k=(min(settings.knn_k, images),), temperature=settings.knn_temperature)


def table(report: dict[str, Any]) -> str:
    """The table that a run ends with: accuracies in percent, differences in points."""
    random = report["random"]
    lines = [(f"{tap} linear", value, random["linear"][tap], "") for tap, value in report["linear"].items()]
    if "few" in report:  # not in runs that were measured before there was this protocol
        found = report["few"]
        spread = f"  ± {100 * found['deviation']:.1f} over {found['draws']} draws"
        title = f"res5 linear, {found['per_class']} a class"
        lines.append((title, found["accuracy"], random["few"]["accuracy"], spread))
    vote = report["knn"]
    title = f"res5 kNN, k {vote['k']}, τ {vote['temperature']:g}"
    lines.append((title, vote["accuracy"], random["knn"]["accuracy"], ""))
    images = counted(report["train_images"], "image")
    return "\n".join(
        [
            f"accuracy in %, fitted to {images}, of {report['test_images']:,} held out",
            f"{'':<24}{'random':>9}{'trained':>9}{'change':>9}",
            *(
                f"{name:<24}{100 * old:>9.1f}{100 * new:>9.1f}{100 * (new - old):>+9.1f}{more}"
                for name, new, old, more in lines
            ),
        ]
    )
