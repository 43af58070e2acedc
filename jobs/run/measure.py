"""What is measured of a network: at the end of a run, and during training."""

import json
from collections.abc import Callable

import torch

from pirl import dist
from pirl.config import Config
from pirl.data.dataset import Dataset
from pirl.evaluate.evaluate import evaluate, evaluate_res5
from pirl.evaluate.splits import why_not
from pirl.evaluate.subject import Subject
from pirl.methods.choice import Network
from pirl.methods.models import Trunk, new_trunk
from pirl.runs.metrics import Metrics
from pirl.runs.run_files import RunFile
from pirl.storage.folder import Folder
from pirl.train import Measure


def labelled_test_split(known: Dataset, say: Callable[[str], None]) -> Dataset | None:
    """What a data set holds out for tests; None where it cannot be used, and says why."""
    asked = known.held_out()
    if reason := why_not(known, asked):
        say(f"no evaluation: {reason}; evaluation.enabled false leaves this line out")
        return None
    return asked


def probe(
    config: Config, known: Dataset, device: torch.device, say: Callable[[str], None], tell: Callable[[str], None]
) -> Measure | None:
    """What is measured during training; None on data without labels."""
    asked = labelled_test_split(known, say)
    if asked is None:
        return None

    def measured(network: Network) -> Metrics:
        return evaluate_res5(_subject(config, network, None, known, asked, device, tell), config)

    return measured


def measure(
    config: Config,
    known: Dataset,
    folder: Folder,
    network: Network,
    device: torch.device,
    say: Callable[[str], None],
    tell: Callable[[str], None],
) -> None:
    """Evaluates the trunk beside one with random weights, and writes `evaluation/pretrain.json`."""
    asked = labelled_test_split(known, say)
    if asked is None:
        return
    say("evaluating")
    torch.manual_seed(config.seed)  # the weights that training began with
    untrained = new_trunk(config.model).to(device)
    report = evaluate(_subject(config, network, untrained, known, asked, device, tell), config)
    if dist.rank() == 0:
        folder.write(RunFile.EVALUATION, json.dumps(report, indent=2) + "\n")


def _subject(
    config: Config,
    network: Network,
    untrained: Trunk | None,
    known: Dataset,
    asked: Dataset,
    device: torch.device,
    tell: Callable[[str], None],
) -> Subject:
    return Subject(
        network.trunk,
        untrained,
        known,
        asked,
        config.data.image_size,
        device,
        skip=config.data.on_error == "skip",
        tell=tell,
        loader_processes=config.cluster.loader_processes,
    )
