"""How far a training is, as lines for people: in `train.log`, and as what a terminal shows at the moment."""

import re
from collections.abc import Mapping
from datetime import timedelta

_STEP = re.compile(r"epoch +\S+   step (?P<done>[\d,]+)/(?P<all>[\d,]+)   loss ")
_FILLING = "filling the memory bank: "


def progress_line(metrics: Mapping[str, float]) -> str:
    """One report as a line that a person can follow."""
    terms = [f"{name} {metrics[f'loss_{name}']:.3f}" for name in ("image", "pretext") if f"loss_{name}" in metrics]
    return "   ".join(
        [
            f"epoch {metrics['epoch']:6.2f}/{_epochs(metrics):.0f}",
            f"step {metrics['step']:,.0f}/{metrics['last_step']:,.0f}",
            f"loss {metrics['loss']:.3f} ({', '.join(terms)})",
            f"lr {metrics['lr']:.2g}",
            f"{metrics['samples_per_s']:,.0f} samples/s",
            f"waiting for data {metrics['data_wait_share']:.0%}",
            f"left {timedelta(seconds=round(metrics['time_left_s']))}",
        ]
    )


def live_text(metrics: Mapping[str, float]) -> str:
    """The same in short, for one line of a terminal: what matters most comes first, as a narrow one cuts the end."""
    return "  ".join(
        [
            f"step {metrics['step']:,.0f}/{metrics['last_step']:,.0f}",
            f"left {timedelta(seconds=round(metrics['time_left_s']))}",
            f"{metrics['samples_per_s']:,.0f} samples/s",
            f"loss {metrics['loss']:.3f}",
            f"data wait {metrics['data_wait_share']:.0%}",
            f"epoch {metrics['epoch']:.2f}/{_epochs(metrics):.0f}",
        ]
    )


def filling_line(step: int, steps: int) -> str:
    """How far the pass over the data is that fills the memory bank."""
    return f"{_FILLING}step {step:,}/{steps:,}"


def is_passing(line: str) -> bool:
    """Whether a line of `train.log` says how far it is, and the next such line more: all but that of the last step."""
    step = _STEP.match(line)
    return line.startswith(_FILLING) or (step is not None and step["done"] != step["all"])


def _epochs(metrics: Mapping[str, float]) -> float:
    return metrics["last_step"] * metrics["epoch"] / metrics["step"]
