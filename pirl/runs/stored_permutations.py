"""The orders of a run's patches, as a file of the run: a covariant network says the number of one of them."""

import json

import numpy as np

from pirl.config import Config
from pirl.errors import ConfigError
from pirl.permutations import Permutations, permutation_set
from pirl.runs.run_files import RunFile
from pirl.storage.folder import Folder
from pirl.storage.sealed import is_whole, sealed, until_whole


def made_permutations(config: Config) -> Permutations | None:
    """Those of a run that begins; None where all orders are allowed, or there are no patches."""
    return None if config.permutations is None else permutation_set(config.seed, config.permutations)


def write_permutations(folder: Folder, config: Config, permutations: Permutations) -> None:
    """Writes them into the run folder, one string of nine digits for each."""
    orders = ["".join(map(str, order)) for order in permutations.tolist()]
    folder.write(RunFile.PERMUTATIONS, sealed({"seed": config.seed, "orders": orders}).decode())


def read_permutations(folder: Folder, config: Config) -> Permutations | None:
    """Those of a run that goes on, as they were written.

    Raises:
        ConfigError: They are gone, damaged, or not those of this run.
    """
    if config.permutations is None:
        return None
    file = folder / RunFile.PERMUTATIONS
    remedy = "put it back, or choose another --run: what the run has learned goes with its orders"
    try:
        text, whole = until_whole(file.read_bytes, is_whole)
    except FileNotFoundError:
        raise ConfigError(f"{file} is gone: {remedy}") from None
    if not whole:
        raise ConfigError(f"{file} is damaged: {remedy}")
    known = json.loads(text)
    if (known["seed"], len(known["orders"])) != (config.seed, config.permutations):
        raise ConfigError(
            f"{file} has {len(known['orders'])} orders of seed {known['seed']}, and the run {config.permutations} of "
            f"seed {config.seed}: {remedy}"
        )
    return np.array([list(map(int, order)) for order in known["orders"]], np.uint8)
