"""Named runs. Each is a function that returns a config; its docstring says what it is, what it should reach,
what it costs and how to start it.
"""

import math
from collections.abc import Callable

from pirl.config import Config, override
from pirl.errors import ConfigError
from pirl.imagenet_recipes import (
    imagenet_both,
    imagenet_c2x,
    imagenet_clusterfit,
    imagenet_covariant_jigsaw,
    imagenet_covariant_rotation,
    imagenet_jigsaw,
    imagenet_mlp,
    imagenet_npid,
    imagenet_rotation,
)


def digits() -> Config:
    """scikit-learn's 1,797 handwritten digits: the built-in run, to see everything work.

    Not in the paper. The digits are upright, so there is no flip, and gray, so no colour but brightness and
    contrast.
    Expected: 97.6 ± 0.5 % with a linear probe of res5 over three seeds; random weights reach 93.5 ± 1.6. So measured
    with --no-ray: one process, whose batch norms see the whole batch; those of two workers see half of it each.
    Cost: about 2 minutes on two CPU cores.
    Command: python jobs/pretrain.py digits
    """
    return override(
        Config(),
        {
            "data.uri": "digits",
            "data.batch_size": 128,
            "data.image_size": 16,
            "augment.crop_min": 0.5,
            "augment.flip": 0.0,
            "augment.hue": 0.0,
            "augment.saturation": 0.0,
            "augment.gray": 0.0,
            "model.width": 16,
            "loss.kind": "infonce",
            "loss.num_negatives": 512,
            "loss.temperature": 0.1,
            "memory.init": "forward",
            "optim.epochs": 40,
            "cluster.loader_processes": 0,
        },
    )


def digits_jigsaw() -> Config:
    """The digits by covariant jigsaw: the network says which of 100 permutations was applied.

    Expected: 95 % of the permutations right in training, but 89.7 % with a linear probe of res5 (one seed, --no-ray),
    less than the 94.7 of random weights: what it sees are patches of 5 pixels.
    Cost: about 3 minutes on two CPU cores.
    Command: python jobs/pretrain.py digits_jigsaw
    """
    return override(digits(), {"method.name": "covariant", "pretext.permutations": 100})


def digits_rotation() -> Config:
    """The digits by covariant rotation: the network says by which angle they were turned.

    Expected: 91 % of the angles right in training, as some digits look alike when turned, and 96.4 % with a linear
    probe of res5 (one seed, --no-ray); random weights reach 94.7.
    Cost: about 1.5 minutes on two CPU cores.
    Command: python jobs/pretrain.py digits_rotation
    """
    return override(digits(), {"method.name": "covariant", "pretext.name": "rotation"})


def digits_supervised() -> Config:
    """The digits by their labels, as a reference; with --data.label-noise a control experiment.

    Expected: 99.7 % with a linear probe of res5 (one seed, --no-ray); random weights reach 94.7.
    Cost: about 2 minutes on two CPU cores.
    Command: python jobs/pretrain.py digits_supervised
    """
    return override(digits(), {"method.name": "supervised"})


def digits_npid() -> Config:
    """The digits by NPID, PIRL's λ = 0: instance discrimination without a pretext task.

    Expected: about what digits reaches; not measured by itself.
    Cost: about a minute on two CPU cores.
    Command: python jobs/pretrain.py digits_npid
    """
    return override(digits(), {"pretext.name": "none", "loss.pretext_weight": 0.0})


def digits_clusterfit() -> Config:
    """The digits by ClusterFit: learn the clusters of the features of digits_jigsaw.

    Expected: with 6 epochs for each network 95.1 ± 1.8 % with a linear probe of res5 over three seeds, and the first
    network 86.2 ± 3.3; forty were not measured.
    Cost: as digits_supervised. Make the clusters first: python jobs/clusterfit.py runs/digits_jigsaw --clusters 50
    Command: python jobs/pretrain.py digits_clusterfit
    """
    return override(
        digits(), {"method.name": "clusterfit", "data.pseudo_labels": "runs/digits_jigsaw-clusterfit/targets"}
    )


def digits_distillation() -> Config:
    """The digits by distillation: learn how near to its clusters digits_jigsaw sees an image.

    Expected: with 6 epochs for each network 90.2 ± 2.4 % with a linear probe of res5 over three seeds, where
    digits_clusterfit reaches 95.1; forty were not measured.
    Cost: a fourth more than digits_supervised. Make the teacher first, as digits_clusterfit's clusters, with --distill.
    Command: python jobs/pretrain.py digits_distillation
    """
    return override(
        digits(), {"method.name": "distillation", "method.teacher": "runs/digits_jigsaw-distillation/targets"}
    )


def cifar10() -> Config:
    """CIFAR-10 on two CPU cores: ResNet-18 at a quarter of the width, for a few epochs.

    Not in the paper. What matters at this budget: many small steps (45.1 % at batch 64 after 3 epochs of NPID,
    42.5 % at batch 256 after 4), a bank filled by one forward pass, and weak colour changes.
    Expected: 55.2 % with a linear probe of res5 (one seed, two workers); random weights reach 34.2. Over three seeds of
    8 epochs in one process, whose batch norms see the whole batch: 52.4 ± 0.7, and 34.0 ± 0.3 of random weights.
    Cost: about half an hour on two CPU cores.
    Command: python jobs/pretrain.py cifar10 --data.uri data/cifar10
    """
    return override(
        Config(),
        {
            "data.uri": "data/cifar10",
            "data.batch_size": 64,
            "augment.crop_min": 0.3,
            "augment.hue": 0.1,
            "augment.gray": 0.1,
            "model.width": 16,
            "loss.kind": "infonce",
            "loss.num_negatives": 4096,
            "loss.temperature": 0.1,
            "memory.init": "forward",
            "optim.epochs": 10,
            "checkpoint.log_every_steps": 50,
            "evaluation.knn_k": 200,
        },
    )


FEWEST = 32
"""Images that `photos` can work with; what it learns from so few is little."""


def photos(rows: int = 10_000, side: int = 224, *, gpus: bool = False) -> Config:
    """Your own photographs, some hundred to some 100,000: its numbers follow from their number.

    Not in the paper. For N images on CPUs, and in brackets on GPUs; they go into the run's config.json as numbers:
      batch        N / 16, down to a power of two, from 32 [128] to 256, at most N; rate 0.03 * sqrt(batch / 64)
      epochs       45,000 / N, from 10 to 200 [60,000,000 / N, from 200 to 800]
      negatives    N / 2, at most 4,096 [16,384]
      views        112 px [224], less where the images are smaller, 32 at least; of a fifth of the image or more
      network      ResNet-18 of width 16 [64; ResNet-50 from 50,000 images]; the small stem below 64 px
    The values below are for 10,000 images on CPUs.
    Expected: 66 % with a linear probe of res5 on three classes of 300 photographs, random weights 53 (one seed).
    Cost: about 5 minutes for 700 images on two CPU cores, 10 for 10,000: reckoned from 158 images/s, not timed.
    Command: python jobs/pretrain.py photos --data.uri data/photos

    Args:
        rows: Images of the data set.
        side: Pixels of the largest short side that one of them may have.
        gpus: Whether the run has GPUs.

    Raises:
        ConfigError: There are fewer than 32 images.
    """
    if rows < FEWEST:
        raise ConfigError(f"photos needs {FEWEST} images or more, and there are {rows}: prepare more of them")
    batch = min(2 ** int(math.log2(max(rows / 16, 128 if gpus else 32))), 256, 2 ** int(math.log2(rows)))
    size = max(32, min(side, 224 if gpus else 112))
    return override(
        Config(),
        {
            "data.uri": "data/photos",
            "data.batch_size": batch,
            "data.image_size": size,
            "augment.crop_min": 0.2,
            "augment.hue": 0.1,
            "model.arch": "resnet50" if gpus and rows >= 50_000 else "resnet18",
            "model.width": 64 if gpus else 16,
            "model.stem": "imagenet" if size >= 64 else "small",
            "loss.kind": "infonce",
            "loss.num_negatives": min(rows // 2, 16_384 if gpus else 4096),
            "loss.temperature": 0.1,
            "memory.init": "forward",
            "optim.epochs": min(max(60_000_000 // rows, 200), 800) if gpus else min(max(45_000 // rows, 10), 200),
            "optim.lr": round(0.03 * math.sqrt(batch / 64), 3),
            "cluster.workers": 1 if gpus else 2,
            "cluster.loader_processes": 8 if gpus else 1,
            "checkpoint.every_steps": max(-(-rows // batch), 100),
            "evaluation.knn_k": min(max(rows // 50, 5), 200),
        },
    )


RECIPES: dict[str, Callable[..., Config]] = {
    recipe.__name__: recipe
    for recipe in (
        *(digits, digits_npid, digits_jigsaw, digits_rotation, digits_supervised),
        *(digits_clusterfit, digits_distillation),
        *(cifar10, photos, imagenet_jigsaw, imagenet_rotation),
        *(imagenet_both, imagenet_npid, imagenet_mlp, imagenet_c2x),
        *(imagenet_covariant_jigsaw, imagenet_covariant_rotation, imagenet_clusterfit),
    )
}
