import pickle

import numpy as np
import pytest
import torch

from pirl.loading.collate import collate
from pirl.loading.loader import Batch
from pirl.loading.views import Views, sample_rng
from pirl.pretext import PRETEXTS
from pirl.sections import Augment

CPU = torch.device("cpu")


def samples_of(pretext):
    make = Views(32, Augment(), PRETEXTS[pretext], 0.6)
    images = torch.randint(256, (3, 3, 40, 50), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return [make(image, sample_rng(0, 0, id)) for id, image in enumerate(images)]


@pytest.mark.parametrize("pretext", ["none", "rotation", "jigsaw"])
def test_a_part_holds_each_sample(pretext):
    samples = samples_of(pretext)
    part = pickle.loads(pickle.dumps(collate(samples, [5, 0, 7], retries=2, labels=[3, -1, 4])))
    assert part.served.tolist() == [5, 0, 7]
    assert part.labels.tolist() == [3, -1, 4]
    assert part.retries == 2
    kinds = [("image", "image_color"), ("pretext", "pretext_color")][: 1 if pretext == "none" else 2]
    for (name, color), views, colors in zip(kinds, part.views(CPU), part.colors, strict=True):
        assert torch.equal(views, torch.stack([getattr(sample, name) for sample in samples]))
        assert np.array_equal(colors, torch.stack([getattr(sample, color) for sample in samples]))


def test_views_have_channels_last():
    """That is what the trunk works on."""
    for views in collate(samples_of("jigsaw"), [0, 1, 2], 0, [0] * 3).views(CPU):
        assert views.flatten(end_dim=-4).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("pretext", ["none", "rotation", "jigsaw"])
def test_parts_of_several_processes_come_to_the_device_as_those_of_one(pretext):
    samples = samples_of(pretext)
    one, (first, second) = (
        collate(samples, [0, 1, 2], 0, [0] * 3),
        (collate(samples[:2], [0, 1], 0, [0] * 2), collate(samples[2:], [2], 0, [0])),
    )

    def batch(*parts):
        colors = [torch.from_numpy(np.concatenate(some)) for some in zip(*(part.colors for part in parts), strict=True)]
        ids, none = torch.arange(3), torch.zeros(3)
        return Batch(0, ids, [3], slice(0, 3), list(parts), colors, ids, none, 0, 0.0, none)

    for some, others in zip(batch(one).views(CPU), batch(first, second).views(CPU), strict=True):
        assert torch.equal(some, others)
        assert some.is_contiguous(memory_format=torch.channels_last)
