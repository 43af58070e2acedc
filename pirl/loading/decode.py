"""Encoded bytes to pixels."""

import re
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from pirl.data.dataset import Dataset, RowGroup
from pirl.errors import CorruptImage

_RGB = 3
"""torchvision's ImageReadMode.RGB."""
SKIP = "To train on the others add --data.on_error skip"

# torchvision's decoders without its Python, which every loader process would take 1.4 s of a core to import.
for _folder in getattr(find_spec("torchvision"), "submodule_search_locations", ()):
    for _library in Path(_folder).glob("image*.so"):
        torch.ops.load_library(_library)  # type: ignore[no-untyped-call]
if not hasattr(torch.ops.image, "decode_image"):  # a torchvision that is laid out otherwise
    import torchvision.io  # noqa: F401


def decode(data: bytes | memoryview) -> Tensor:
    """Decodes JPEG, PNG, WebP to uint8 RGB (3, H, W); gray, CMYK and palettes become RGB, alpha is dropped.

    Raises:
        ValueError: The bytes are not one whole image of 8 bits a channel.
    """
    try:
        # The operator itself: torchvision's function around it warns, at each call, that it will move.
        image: Tensor = torch.ops.image.decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8), _RGB, False)
    except (RuntimeError, ValueError) as error:
        # Without the place in torchvision's source that it begins with.
        why = re.sub(r"^.*\.cpp:\d+, ", "", str(error))
        raise ValueError(f"cannot decode an image of {len(data):,} bytes: {why}") from None
    if image.dtype != torch.uint8 or image.ndim != 3:
        raise ValueError(f"not one image of 8 bits a channel: {image.dtype}, shape {tuple(image.shape)}")
    return image


def decoded(dataset: Dataset, group: RowGroup, id: int, row: int) -> Tensor:
    """An image of a row group as uint8 (3, H, W).

    Raises:
        CorruptImage: Its bytes are not those that were written, or are not an image; says shard, row and id, what the
            image was called in the source where the data set has that, and what to type.
    """
    if row in group.corrupt:
        raise CorruptImage(f"{group.corrupt[row]}. {SKIP}")
    try:
        return decode(group.images[row])
    except ValueError as error:
        place = dataset.place(id) + group.made_from(row)
        raise CorruptImage(
            f"{place}: {error}. {SKIP}, or write the data set again, without what cannot be used: "
            "python jobs/prepare.py SOURCE DESTINATION --overwrite"
        ) from None
