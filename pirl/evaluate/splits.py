"""The two splits on which a trunk is measured: the images that it was trained on, and those that were held out."""

from pirl.data.dataset import Dataset
from pirl.evaluate.voc.voc_folder import VocSplit


def why_not(dataset: Dataset, test: Dataset | None) -> str | None:
    """Says why nothing can be measured on a data set, or None if it can."""
    remedy = "python jobs/prepare.py writes them from class folders"
    if test is None:
        return f"{dataset.uri} has no test split beside it ({remedy})"
    for split in (dataset, test):
        if isinstance(split, VocSplit):
            return f"the images of {split.uri} show several classes each: use --protocol svm or detection"
        if split.labels is None:
            return f"the images of {split.uri} have no labels ({remedy})"
    if reason := numbered_otherwise(dataset, test):
        return reason
    if not _classes(dataset) & _classes(test):
        return f"no class of the images of {test.uri} is one of {dataset.uri}, so none can be recognised"
    if len(_classes(dataset)) < 2:
        return f"all images of {dataset.uri} are of one class, so there is nothing to tell apart"
    return None


def numbered_otherwise(dataset: Dataset, test: Dataset) -> str | None:
    """Says which class has another number in the test split, so that it would be taken for another one; else None."""
    numbers = {name: number for number, name in _classes(dataset)}
    if other := [name for number, name in sorted(_classes(test)) if numbers.get(name, number) != number]:
        return (
            f"{other[0]} has another number among the classes of {test.uri} than among those of {dataset.uri}: prepare "
            "both together (python jobs/prepare.py SOURCE DESTINATION --test SOURCE)"
        )
    return None


def unknown_to(dataset: Dataset, test: Dataset) -> list[str]:
    """Classes that images of the test split have and none that fits, so that they count as not recognised."""
    known = {name for _, name in _classes(dataset)}
    return [name for _, name in sorted(_classes(test)) if name not in known]


def _classes(dataset: Dataset) -> set[tuple[int, str]]:
    """Numbers and names of the classes that have images."""
    rows = dataset.class_rows
    return {(number, name) for number, name in enumerate(dataset.labels or []) if rows is None or rows[number]}
