"""Which network and which step a method has: what the loop asks for, whatever the method is."""

from torch import Tensor, nn

from pirl.config import Config
from pirl.data.dataset import Dataset
from pirl.methods.classify import Classifier, ClassifyStep
from pirl.methods.distill import DistillStep, Teacher
from pirl.methods.memory import MemoryBank
from pirl.methods.pirl import PIRL, PIRLStep

Network = PIRL | Classifier
"""Has a `trunk`, which is what is measured and exported."""

Step = PIRLStep | ClassifyStep | DistillStep
"""Has `weights` and `names` of its terms, `losses`, `update` and `fill`."""


def new_network(config: Config, dataset: Dataset, teacher: Teacher | None = None) -> Network:
    """With random weights; what learns from a teacher has its classes."""
    if config.has_bank:
        return PIRL(config)
    return Classifier(config, teacher.classes if teacher else classes(config, dataset))


def new_step(
    config: Config,
    network: Network,
    model: nn.Module,
    bank: MemoryBank | None,
    log_z: Tensor,
    teacher: Teacher | None = None,
) -> Step:
    """Its step; `model` is the network as it is called, compiled or in DDP."""
    if isinstance(network, PIRL):
        assert bank is not None, "PIRL has a bank"
        return PIRLStep(config, network, model, bank, log_z)
    if teacher is not None:
        return DistillStep(config, model, teacher.to(log_z.device), log_z.device)
    return ClassifyStep(config, model, log_z.device)


def classes(config: Config, dataset: Dataset) -> int:
    """What a classifier tells apart: labels, or targets of the pretext task."""
    if config.learns_labels:
        return len(dataset.labels or [])
    return config.second_view.targets(config.permutations or 0)
