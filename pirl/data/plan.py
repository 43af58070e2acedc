"""How a run deals the images of a data set to its steps and workers, and what cannot be dealt."""

from pirl.config import Config
from pirl.data.dataset import Dataset
from pirl.data.order import Order
from pirl.errors import ConfigError


def data_order(config: Config, dataset: Dataset) -> Order:
    """The order of the data of this run."""
    data = config.data
    return Order(dataset.starts, config.seed, config.streams, data.batch_size, config.window_groups)


def check_data(config: Config, dataset: Dataset, workers: int) -> None:
    """Refuses a data set that is smaller than the batch or the negatives, or has no labels to learn, and too many
    workers for batch norm.

    Raises:
        ConfigError: What is too large, and what to use.
    """
    batch_size, negatives = config.data.batch_size, config.loss.num_negatives
    if batch_size > dataset.rows:
        raise ConfigError(
            f"data.batch_size {batch_size} is more than the {dataset.rows} images of {dataset.uri}: "
            f"use a smaller --data.batch-size"
        )
    if config.has_bank and negatives >= dataset.rows:
        raise ConfigError(
            f"loss.num_negatives {negatives} needs more than the {dataset.rows} images of "
            f"{dataset.uri}: use --loss.num-negatives {dataset.rows - 1} or less"
        )
    if config.learns_labels:
        check_labels(dataset, config.method.name)
    # The first step has the smallest shares.
    smallest, pieces = min(data_order(config, dataset).shares(0, workers)), config.optim.accumulate
    needed = 2 if config.model.norm == "batch" else 1
    if pieces > 1 and smallest // pieces < needed:
        raise ConfigError(
            f"optim.accumulate {pieces} cuts the {smallest} images that one of {workers} workers has in some steps "
            f"into pieces of less than {needed}: use --optim.accumulate {max(1, smallest // needed)} or less"
        )
    if config.model.norm == "batch" and smallest < 2:
        raise ConfigError(
            f"data.batch_size {batch_size} leaves one of {workers} workers a single image in some steps, and "
            "batch norm needs several: use a larger --data.batch-size or fewer workers"
        )


def check_labels(dataset: Dataset, method: str) -> None:
    """Refuses images without labels, or of one class only, for learning them; raises ConfigError with what to do."""
    remedy = "python jobs/prepare.py writes them from class folders; without labels use --method.name pirl"
    if dataset.labels is None:
        raise ConfigError(f"method.name {method} learns labels, and the images of {dataset.uri} have none: {remedy}")
    rows = dataset.class_rows
    used = [name for number, name in enumerate(dataset.labels) if rows is None or rows[number]]
    if len(used) < 2:
        raise ConfigError(
            f"method.name {method} tells classes apart, and the images of {dataset.uri} are of "
            f"{f'one class, {used[0]}' if used else 'none'}: {remedy}"
        )
