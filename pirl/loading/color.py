"""Colour of the training views: a whole batch at once, on the device, as one 3x4 affine map for each image.

Shapes: M images or patches of 3 x h x w; P colour parameters each.
"""

import math
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pirl.loading.device import sent
from pirl.sections import Augment

MEAN = torch.tensor((0.485, 0.456, 0.406)).view(3, 1, 1)
STD = torch.tensor((0.229, 0.224, 0.225)).view(3, 1, 1)
"""Of ImageNet's pixels in 0..1, per channel; torchvision's weights expect them."""
BLUR_SIGMA = (0.1, 2.0)
"""Range of the Gaussian blur, in pixels (SimCLR)."""


def draw_color(n: int, augment: Augment, rng: np.random.Generator) -> Tensor:
    """Draws float32 (n, P): P is 4, or 5 where there is blur at all.

    The columns: factors of brightness, contrast and saturation (0 makes grayscale), hue as a share of the
    circle, sigma of the blur in pixels (0 is none).
    """
    u = rng.random((n, 7))
    reach = np.array((augment.brightness, augment.contrast, augment.saturation, augment.hue))
    color = np.array((1.0, 1.0, 1.0, 0.0)) + reach * (2 * u[:, :4] - 1)
    color[:, 2] *= u[:, 4] >= augment.gray
    if augment.blur > 0:
        low, high = BLUR_SIGMA
        color = np.column_stack((color, (low + (high - low) * u[:, 5]) * (u[:, 6] < augment.blur)))
    return torch.from_numpy(color.astype(np.float32))


# Luma of RGB, and the chroma plane of YIQ, in which hue is an angle.
_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]], dtype=torch.float64)
_WEIGHTS = _YIQ[0]
_LUMA = _WEIGHTS.expand(3, 3)
_CHROMA = torch.eye(3, dtype=torch.float64) - _LUMA
_QUARTER = torch.tensor([[0, 0, 0], [0, 0, -1], [0, 1, 0]], dtype=torch.float64)
_TURN = torch.linalg.solve(_YIQ, _QUARTER @ _YIQ)


def color_matrices(params: Tensor) -> Tensor:
    """The linear part (M, 3, 3) of each image's change of colour, for columns of RGB.

    A pixel is luma Y plus chroma. Brightness scales both, saturation scales chroma, hue turns chroma in the
    plane of I and Q (torchvision turns in HSV instead; both leave gray alone), and contrast scales both about
    the image's mean luma. These commute as long as nothing is clipped between them, so a random order, as in
    torchvision's ColorJitter, would change nothing: clipping comes once, at the end.
    """
    brightness, contrast, saturation, hue = params[:, :4, None, None].unbind(1)
    angle = 2 * math.pi * hue
    luma, chroma, turn = (_on(params.device, m) for m in (_LUMA, _CHROMA, _TURN))
    return brightness * contrast * (luma + saturation * (angle.cos() * chroma + angle.sin() * turn))


def color_and_normalize(images: Tensor, params: Tensor) -> Tensor:
    """Changes colours, clips to 0..1, blurs and normalises: the training views, on the images' device.

    Args:
        images: uint8 (M, 3, h, w).
        params: float32 (M, P) as `draw_color` gives them. Those that lie on the CPU save a wait for the GPU
            where there is blur.

    Returns:
        float32 (M, 3, h, w).
    """
    # Planes rather than pixels: the product is (3, 3) by (3, hw), long rows for the vector units.
    x = images.to(torch.float32, memory_format=torch.contiguous_format).flatten(2)
    color = sent(params, x.device)
    with torch.autocast(x.device.type, enabled=False):  # bf16 keeps 8 bits: too few for arithmetic on 8-bit pixels
        mean_luma = x.mean(2) @ _on(x.device, _WEIGHTS)
        shift = color[:, 0] * (1 - color[:, 1]) * mean_luma / 255
        x = torch.bmm(color_matrices(color) / 255, x).add_(shift[:, None, None])
        x = x.clamp_(0, 1).view(images.shape)
        if params.shape[1] > 4:
            blurred = sent(params[:, 4].nonzero()[:, 0], x.device)
            if len(blurred):
                x[blurred] = gaussian_blur(x[blurred], color[blurred, 4])
    return _standardize(x)


def normalize(images: Tensor) -> Tensor:
    """Maps uint8 (M, 3, h, w) to float32 without any change of colour: the views for evaluation."""
    return _standardize(images.to(torch.float32, memory_format=torch.contiguous_format).div_(255))


def _standardize(x: Tensor) -> Tensor:
    return x.sub_(_on(x.device, MEAN)).div_(_on(x.device, STD))


@cache
def _on(device: torch.device, constant: Tensor) -> Tensor:
    """A constant of this file, copied to a device once."""
    with torch.inference_mode(False):  # evaluation may be the first to ask
        return sent(constant.float(), device)


def gaussian_blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Blurs float32 (M, 3, h, w), each image with a sigma (M,) of its own, the borders reflected.

    The kernel reaches as far as three times the largest sigma, or half the image.
    """
    m, c, h, w = images.shape
    radius = min(math.ceil(3 * BLUR_SIGMA[1]), h // 2)
    at = torch.arange(-radius, radius + 1, device=images.device)
    weights = torch.softmax(-0.5 * (at / sigma[:, None]) ** 2, 1)  # exp, divided by its sum
    kernel = weights.repeat_interleave(c, 0)[:, None, None]
    # Each plane is a group of its own; along the rows, then along the columns.
    x = F.pad(images, (radius,) * 4, mode="reflect").flatten(0, 1)[None]
    x = F.conv2d(F.conv2d(x, kernel, groups=m * c), kernel.mT, groups=m * c)
    return x.view(m, c, h, w)
