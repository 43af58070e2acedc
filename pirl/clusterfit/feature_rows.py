"""The features of an embedding as one matrix in memory, for who needs all of them at once."""

import json

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pirl.evaluate.embed import EMBEDDING
from pirl.storage.folder import Folder


def unit_rows(folder: Folder) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Reads an embedding that is complete, and scales its features to length 1, as the official code does.

    Returns:
        float32 (N, D) in the order of the ids; and bool (N,), which have features: the other rows are 0.
    """
    about = json.loads(folder.read(EMBEDDING))
    rows = np.zeros((about["images"], about["dimensions"]), np.float32)
    usable = np.zeros(about["images"], bool)
    start = 0
    for shard in about["shards"]:
        with folder.reading(shard["path"]) as file:
            column = pq.read_table(file, columns=["features"], page_checksum_verification=True)["features"]
        values = column.combine_chunks()
        here = slice(start, start + len(values))
        usable[here] = values.is_valid().to_numpy(zero_copy_only=False)
        rows[here][usable[here]] = values.drop_null().flatten().to_numpy().reshape(-1, rows.shape[1])
        start = here.stop
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    rows /= np.maximum(lengths, 1e-5)
    return rows, usable
