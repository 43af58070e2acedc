"""A setting as an axis of a picture: where its values lie, and how they are written there."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from pirl.wording import text_of

TICKS = 8
"""Values that have a tick each; where there are more, ticks are at round numbers."""

LETTER = 0.016
"""Width of a letter, as a share of the axis."""

LETTERS = 20
"""Of a value that are written; of longer ones, such as paths, the end."""


@dataclass(frozen=True)
class Axis:
    """A setting and all values that it has in a sweep.

    Attributes:
        setting: Its dotted name.
        places: Where a value lies, by its text, in order: numbers where they are, all else side by side.
        is_number: Whether all values are numbers.
    """

    setting: str
    places: Mapping[str, float]
    is_number: bool

    @property
    def is_log(self) -> bool:
        """Numbers that are far apart; of negatives all."""
        low, *_, high = [*self.places.values()] * 2
        return self.is_number and low > 0 and (self.setting == "loss.num_negatives" or high >= 8 * low)

    def place(self, values: Mapping[str, Any]) -> float:
        """Where a point with these values lies."""
        return self.places[text_of(values[self.setting])]

    def mark(self, axes: Axes) -> None:
        """Puts the name, the scale and the ticks along the horizontal axis."""
        axes.set_xlabel(self.setting + (" (log scale)" if self.is_log else ""))
        if self.is_log:
            axes.set_xscale("log")
            axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlim(self.limits())
        if not self.is_number:
            texts = [shortened(text) for text in self.places]
            crowded = sum(map(len, texts)) * LETTER > 0.8
            axes.set_xticks([*self.places.values()], texts, rotation=15 if crowded else 0)
        elif len(self.places) <= TICKS:
            axes.set_xticks([*self.places.values()], self.texts_apart())
        elif self.is_log:
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: text_of(float(f"{value:.1g}"))))

    def limits(self) -> tuple[float, float]:
        """The ends of the axis, with room beside the values, whether they have points or not."""
        low, *_, high = [*self.places.values()] * 2
        if not self.is_number:
            return low - 0.5, high + 0.5
        if self.is_log:
            beside = (high / low) ** 0.05 if high > low else 2.0
            return low / beside, high * beside
        beside = 0.05 * (high - low) or 1.0
        return low - beside, high + beside

    def texts_apart(self) -> list[str]:
        """The texts of the values, without those that would lie on the one before."""
        scaled = [math.log(place) if self.is_log else place for place in self.places.values()]
        width = (scaled[-1] - scaled[0]) or 1.0
        texts, end = [], -math.inf
        for text, place in zip(self.places, scaled, strict=True):
            middle, half = (place - scaled[0]) / width, LETTER * (len(text) + 1) / 2
            texts.append(text if middle - half >= end else "")
            end = middle + half if texts[-1] else end
        return texts


def axis_of(setting: str, values: Sequence[Any]) -> Axis:
    """The axis on which a setting's values lie; numbers beside words (`null`) are like words, and come first."""
    is_number = are_numbers(values)
    ordered = sorted(values, key=lambda value: (0, value) if are_numbers([value]) else (1, 0))
    texts = dict.fromkeys(map(text_of, ordered))
    return Axis(setting, {text: float(text) if is_number else i for i, text in enumerate(texts)}, is_number)


def shortened(text: str) -> str:
    """A value for which there is little room."""
    return text if len(text) <= LETTERS else "…" + text[-LETTERS + 1 :]


def are_numbers(values: Sequence[Any]) -> bool:
    """Whether all are numbers, and not truth values."""
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
