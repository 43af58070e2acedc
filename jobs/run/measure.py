"""What is measured of a network: at the end of a run, and during training."""

import json
from collections.abc import Callable

import torch

from pirl.config import Config
from pirl.data.dataset import Dataset
from pirl.evaluate.evaluate import evaluate, evaluate_res5
from pirl.evaluate.splits import why_not
from pirl.methods.pirl import PIRL
from pirl.runs.run_files import RunFile
from pirl.runs.run_log import RunLog
from pirl.storage.folder import Folder
from pirl.train import Measure

NO_EVALUATION = "no evaluation: {}; evaluation.enabled false leaves this line out"


def probe(config: Config, known: Dataset, device: torch.device, say: Callable[[str], None]) -> Measure | None:
    """What is measured during training; None on data without labels."""
    asked = known.held_out()
    if reason := why_not(known, asked):
        say(NO_EVALUATION.format(reason))
        return None
    assert asked is not None
    return lambda network: dict(evaluate_res5(network.trunk, known, asked, config, device))


def measure(
    config: Config, known: Dataset, folder: Folder, network: PIRL, device: torch.device, log: RunLog | None
) -> None:
    """Evaluates the trunk beside one with random weights, and writes `evaluation/pretrain.json`."""
    asked = known.held_out()
    if reason := why_not(known, asked):
        if log:
            log.line(NO_EVALUATION.format(reason))
        return
    assert asked is not None
    if log:
        log.line("evaluating")
    torch.manual_seed(config.seed)  # the weights that training began with
    untrained = PIRL(config).trunk.to(device)
    report = evaluate(network.trunk, untrained, known, asked, config, device)
    if log:
        folder.write(RunFile.EVALUATION, json.dumps(report, indent=2) + "\n")
