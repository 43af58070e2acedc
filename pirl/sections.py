"""The sections of a config: frozen pydantic models, a field for each setting, with its default and its meaning."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from pirl.pretext import PretextName

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]

ROW_DIM = 128
"""Length of an embedding and of a row of the memory bank (paper, section 3)."""


class Section(BaseModel):
    """Base of all sections: frozen, unknown names refused; words of a command line become numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)


class Data(Section):
    """Where the images are and how they are batched."""

    uri: str = "digits"
    """A folder written by jobs/prepare.py, or `digits` for the built-in data set."""
    batch_size: Count = 128
    """Images in a step, over all workers."""
    image_size: Annotated[int, Field(ge=16)] = 32
    """Side of the image view, in pixels. Jigsaw sizes follow it: 255, 85 and 64 px at 224."""
    streams: Count | None = None
    """Fixed parts that an epoch is dealt into, the most workers that can share it; by default by Config.streams."""
    window_groups: Count | None = None
    """Row groups of a stream that are shuffled together and held in memory; by default 64 of all streams together."""
    on_error: Literal["raise", "skip"] = "raise"
    """What an image that is damaged does: it ends the run with its name, or another one takes its place."""
    max_skipped: Share = 0.01
    """The share of the images of an epoch that may be skipped; more end the run."""
    label_noise: Share = 0.0
    """The share of the labels that another class takes the place of, at random and for good: a control experiment with
    method.name supervised."""
    pseudo_labels: str | None = None
    """The folder with the clusters that method.name clusterfit learns, as jobs/clusterfit.py writes it."""
    deadline_s: Positive = 300
    """How long a request to a store is tried again, in seconds; a fifteenth of it is what one try may take."""
    read_ahead_mb: Positive = 128
    """What a loader process reads ahead of need, in 10^6 bytes; best a window of row groups of its streams."""
    cache_gb: Annotated[float, Field(ge=0)] = 10
    """Space on each node's disk for what was read from a store, in 10^9 bytes: best all of it; 0 keeps nothing."""
    cache_folder: str | None = None
    """Where they are kept; by default in the temporary folder (TMPDIR)."""
    storage_options: dict[str, Any] = Field(default_factory=dict)
    """Passed to fsspec: endpoint, region, profile. Secrets are refused; they belong in the environment."""


MethodName = Literal["pirl", "covariant", "supervised", "clusterfit", "distillation"]


class Method(Section):
    """What is learned from the images."""

    name: MethodName = "pirl"
    """`pirl` also is NPID, with loss.pretext_weight 0. `covariant`: the network says what the pretext task did.
    `supervised`: it says the label. `clusterfit`: the cluster, of data.pseudo_labels. `distillation`: what
    method.teacher says."""
    teacher: str | None = None
    """The folder with a network and its classifier, as a distillation by jobs/clusterfit.py writes it."""


class Augment(Section):
    """Random changes to the views; colour strengths as in torchvision's ColorJitter."""

    crop_min: Annotated[float, Field(gt=0, le=1)] = 0.08
    """Smallest area of the image view's random crop, as a share of the image."""
    flip: Share = 0.5
    """Probability of a horizontal flip, for the image view and for each patch of its own."""
    brightness: Share = 0.4
    contrast: Share = 0.4
    saturation: Share = 0.4
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.2
    """Largest hue rotation, as a share of the full circle."""
    gray: Share = 0.2
    """Probability of becoming grayscale."""
    blur: Share = 0.0
    """Probability of a Gaussian blur (0.5 in the MLP recipe)."""


class Model(Section):
    """The trunk and the two heads."""

    arch: Literal["resnet18", "resnet34", "resnet50"] = "resnet18"
    width: Count = 64
    """Channels of the first layer: 64 is the standard network, 128 is the paper's c2x."""
    stem: Literal["imagenet", "small"] = "small"
    """`imagenet`: 7x7 stride 2 and max-pool. `small`: 3x3 stride 1, for images of about 32 px."""
    weights: str | None = None
    """Where the trunk begins: a run, a checkpoint, or a file of torchvision's names (.safetensors, .pth); or random."""
    head: Literal["linear", "mlp"] = "linear"
    norm: Literal["batch", "frozen"] = "batch"
    """`frozen` keeps batch norm's statistics as loaded: then the result does not depend on the number of workers."""


class Pretext(Section):
    """The second view of a sample."""

    name: PretextName = "jigsaw"
    """`both` rotates, then cuts the jigsaw. `none` is NPID and goes with loss.pretext_weight 0."""
    permutations: Count | None = None
    """Orders of the jigsaw's patches, chosen far from each other by the seed; by default all 9!, as the paper has it.
    A covariant jigsaw needs a number: 100, 2,000 and 10,000 are usual. Each takes 0.6 ms when a run begins."""
    crop_min: Annotated[float, Field(gt=0, le=1)] = 0.6
    """Smallest area of the pretext view's random crop, as a share of the image."""


class Loss(Section):
    """Noise-contrastive estimation against the memory bank."""

    kind: Literal["paper", "npid", "infonce"] = "paper"
    """`paper`: Eq. 3-5. `npid`: what the official code computes. `infonce`: cross-entropy."""
    num_negatives: Count = 1024
    """Rows of the bank that each step compares with, shared by the whole batch."""
    temperature: Positive = 0.07
    pretext_weight: Share = 0.5
    """λ of Eq. 5: weight of the pretext view's term."""


class Memory(Section):
    """The memory bank: one row for each image."""

    keep: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Weight of the old row in an update."""
    init: Literal["random", "forward"] = "random"
    """First rows: random unit vectors, or one forward pass over the data before training."""
    wire_dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of the negatives when they are gathered from the workers."""


class Optim(Section):
    """SGD with momentum and a cosine schedule, stepped every batch."""

    epochs: Count = 10
    lr: Positive = 0.03
    final_lr: Annotated[float, Field(ge=0)] = 0.00003
    warmup_epochs: Annotated[float, Field(ge=0)] = 0.0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    """Not applied to norms and biases."""
    clip_norm: Positive | None = None
    """Largest norm of the gradient; none by default."""
    bf16: bool = True
    """bf16 autocast in the trunk and the heads; the loss and the bank stay in float32."""
    compile: bool = False
    """torch.compile the network."""
    cuda_graphs: bool = False
    """With compile: replay the work of a step as one request, where small batches leave a GPU waiting for the CPU."""
    accumulate: Count = 1
    """Pieces in which each worker goes through its part of a batch, so that it fits into memory. Negatives and bank are
    as without; batch norm sees a piece."""


class Cluster(Section):
    """What one run takes from the cluster. Nothing here changes what is learned."""

    workers: Count = 2
    cpus_per_worker: Count = 1
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0
    loader_processes: Annotated[int, Field(ge=0)] = 1
    """Processes for each worker that read and decode images; 0 does it in the training process."""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """How often the run restarts from its last checkpoint after a worker was lost."""


class Checkpoint(Section):
    """When to save, and how much to keep."""

    every_steps: Count | None = None
    """Steps between checkpoints; by default one at the end of each epoch."""
    keep: Annotated[int, Field(ge=2)] = 2
    """Newest checkpoints that stay; where the loss of the next step is no number, the newest goes too."""
    log_every_steps: Count = 10
    """Steps between lines of progress and of metrics.jsonl."""


class Evaluation(Section):
    """What is measured after training, and during it, on data with labels."""

    enabled: bool = True
    every_epochs: Count | None = None
    """Epochs between measurements of res5 during training, in metrics.jsonl; none by default."""
    knn_k: Count = 20
    knn_temperature: Positive = 0.07
