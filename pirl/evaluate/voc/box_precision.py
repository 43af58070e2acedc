"""Average precision of boxes by COCO's rules, as its own code (pycocotools) counts it."""

import io
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pirl.evaluate.voc.annotation import VocObject

MOST = 100
"""Boxes that count for an image and a class: those with the largest scores."""

Boxes = NDArray[np.float64]
"""(R, 6): left, top, right, bottom in pixels, score, and number of the class."""


@dataclass(frozen=True)
class BoxPrecision:
    """Shares of 1.

    Attributes:
        ap: The mean over overlaps (IoU) of 0.50, 0.55, ... 0.95 and over the classes.
        ap50: With an overlap of 0.50, and `ap75` of 0.75.
        of_classes: `ap` of each class.
    """

    ap: float
    ap50: float
    ap75: float
    of_classes: dict[str, float]


def box_precision(
    found: Mapping[int, Boxes], objects: Sequence[Sequence[VocObject]], classes: Sequence[str]
) -> BoxPrecision:
    """What the boxes that were found in images are worth.

    A difficult object is a `crowd` of COCO: what lies on it counts neither for nor against.

    Args:
        found: By the number of the image.
        objects: Those of each image.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    rows = [(image, *_corner_and_size(box[:4]), box[4], box[5]) for image, boxes in found.items() for box in boxes]
    if not rows:
        return BoxPrecision(0.0, 0.0, 0.0, dict.fromkeys(classes, 0.0))
    with redirect_stdout(io.StringIO()):  # it tells what it does
        truth = COCO()
        truth.dataset = _as_coco(objects, classes)
        truth.createIndex()
        count = COCOeval(truth, truth.loadRes(np.array(rows)), "bbox")
        count.params.areaRng, count.params.areaRngLbl = [[0, 1e10]], ["all"]
        count.params.maxDets = [MOST]
        count.evaluate()
        count.accumulate()
    # (overlaps, recalls, classes); -1 where a class has no object
    precision = count.eval["precision"][..., 0, 0]

    def mean(part: NDArray[np.float64]) -> float:
        return float(part[part > -1].mean()) if (part > -1).any() else float("nan")

    of_classes = {name: mean(precision[..., number]) for number, name in enumerate(classes)}
    return BoxPrecision(mean(precision), mean(precision[0]), mean(precision[5]), of_classes)


def _as_coco(objects: Sequence[Sequence[VocObject]], classes: Sequence[str]) -> dict[str, list[dict[str, object]]]:
    annotations: list[dict[str, object]] = []
    for image, inside in enumerate(objects):
        for each in inside:
            box = _corner_and_size(each.box)
            annotations.append(
                {
                    "id": len(annotations) + 1,  # from 1: a match with 0 would be none
                    "image_id": image,
                    "category_id": classes.index(each.name),
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": int(each.difficult),
                }
            )
    return {
        "images": [{"id": image} for image in range(len(objects))],
        "categories": [{"id": number, "name": name} for number, name in enumerate(classes)],
        "annotations": annotations,
    }


def _corner_and_size(box: Sequence[float] | Boxes) -> list[float]:
    left, top, right, bottom = (float(side) for side in box)
    return [left, top, right - left, bottom - top]
