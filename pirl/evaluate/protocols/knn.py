"""Weighted k-nearest-neighbour classification of features (Wu et al., 1805.01978, section 3.4)."""

import torch.nn.functional as F
from torch import Tensor

CHUNK = 1024
"""Test rows that are compared at once: 1,024 x 50,000 similarities are 200 MB."""


def accuracy(train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor, k: int, temperature: float) -> float:
    """Share of the test rows whose class gets the most votes from their neighbours.

    Each of the k training rows with the largest cosine similarity s votes for its class with exp(s / temperature).
    Features are (N, D) and (M, D), classes (N,) and (M,) int64, 0 to C-1; k is cut to N.
    """
    keys = F.normalize(train_x, dim=1)
    classes = int(train_y.max()) + 1
    hits = 0
    for start in range(0, len(test_x), CHUNK):
        query, label = F.normalize(test_x[start : start + CHUNK], dim=1), test_y[start : start + CHUNK]
        similarity, nearest = (query @ keys.T).topk(min(k, len(keys)), dim=1)
        votes = query.new_zeros(len(query), classes)
        # Minus the largest similarity: the ratio of the votes is the same and exp cannot overflow.
        weight = ((similarity - similarity[:, :1]) / temperature).exp()
        votes.scatter_add_(1, train_y[nearest], weight)
        hits += int((votes.argmax(1) == label).sum())
    return hits / len(test_y)
