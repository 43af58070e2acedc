"""How far a fit is, in a file beside the reports: the same command goes on from it after a kill."""

import io
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pirl import dist
from pirl.evaluate.subject import Subject

SUFFIX = ".unfinished.pt"


@dataclass(frozen=True)
class Unfinished:
    """The state of a fit, where `subject.scratch` says; without that nothing is saved.

    Attributes:
        name: Of the fit.
        about: What it is a fit of: a state of another one is not taken.
        tensors: All that the fit changes, in place.
    """

    subject: Subject
    name: str
    about: dict[str, Any]
    tensors: list[Tensor]

    def load(self) -> int:
        """Fills the tensors, on all ranks, with what rank 0 finds; returns the epochs that are done. A collective."""
        epochs = torch.tensor([self._read() if dist.rank() == 0 else 0], device=self.subject.device)
        dist.broadcast_from_zero(epochs)
        done = int(epochs)
        if done:
            for tensor in self.tensors:
                dist.broadcast_from_zero(tensor.detach())
        return done

    def save(self, epochs: int) -> None:
        """Writes, on rank 0, the tensors after so many epochs."""
        if dist.rank() == 0 and self.subject.scratch is not None:
            content = io.BytesIO()
            torch.save({"about": self.about, "epochs": epochs, "tensors": self.tensors}, content)
            self.subject.scratch.write(self.name + SUFFIX, content.getvalue())

    def _read(self) -> int:
        """Fills the tensors of this rank; returns the epochs that are done."""
        folder, say = self.subject.scratch, self.subject.say
        if folder is None or not folder.exists(self.name + SUFFIX):
            return 0
        try:
            content = io.BytesIO(folder.read_bytes(self.name + SUFFIX))
            saved = torch.load(content, map_location="cpu", weights_only=True)
            about, epochs, tensors = saved["about"], int(saved["epochs"]), saved["tensors"]
        except OSError:
            raise
        except Exception as error:  # damaged bytes can make torch raise anything
            say(f"{self.name}: begins anew, since {folder / (self.name + SUFFIX)} cannot be read ({error})")
            return 0
        if about != self.about:
            say(f"{self.name}: begins anew, since {folder / (self.name + SUFFIX)} is of another request")
            return 0
        with torch.no_grad():
            for own, value in zip(self.tensors, tensors, strict=True):
                own.copy_(value)
        say(f"{self.name}: goes on after epoch {epochs}")
        return epochs


def forget(subject: Subject, *names: str) -> None:
    """Removes the states of fits that are done, on rank 0."""
    if dist.rank() == 0 and subject.scratch is not None:
        subject.scratch.remove(*(name + SUFFIX for name in names))
