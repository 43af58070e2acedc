import itertools

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tvf
from scipy import stats
from scipy.ndimage import gaussian_filter1d
from sklearn.datasets import load_sample_image

from pirl.loading.color import MEAN, STD, color_and_normalize, draw_color, normalize
from pirl.loading.crops import random_resized_crop
from pirl.loading.views import Views, sample_rng
from pirl.pretext import PRETEXTS
from pirl.sections import Augment


@pytest.fixture(scope="module")
def photo():
    """A real photograph (427 x 640), laid out as the decoder does: height, width, channel."""
    return torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1)


def reference_color(image, brightness, contrast, saturation, hue, sigma=0.0):
    """One uint8 (3, h, w) image in float64, one change after the other, clipped at the end."""
    x = image.numpy().astype(np.float64) / 255
    luma = np.array([0.299, 0.587, 0.114])
    x = x * brightness
    x = contrast * x + (1 - contrast) * np.tensordot(luma, x, 1).mean()
    x = saturation * x + (1 - saturation) * np.tensordot(luma, x, 1)
    rgb_to_yiq = np.array([luma, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
    y, i, q = np.tensordot(rgb_to_yiq, x, 1)
    chroma = (i + 1j * q) * np.exp(2j * np.pi * hue)
    x = np.tensordot(np.linalg.inv(rgb_to_yiq), np.stack([y, chroma.real, chroma.imag]), 1).clip(0, 1)
    if sigma:
        for axis in (1, 2):
            x = gaussian_filter1d(x, sigma, axis, mode="mirror", radius=min(6, image.shape[1] // 2))
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    return torch.from_numpy((x - mean[:, None, None]) / std[:, None, None])


@pytest.mark.parametrize("size", [9, 32, 64])
def test_color_equals_a_loop_over_images(photo, size):
    rng = np.random.default_rng(size)
    images = torch.stack([random_resized_crop(photo, size, 0.08, rng) for _ in range(24)])
    params = draw_color(24, Augment(blur=0.5), rng)
    expected = torch.stack([reference_color(i, *p) for i, p in zip(images, params.tolist(), strict=True)])
    # float32 against float64 on values up to 3: a few times 1e-7 per operation.
    torch.testing.assert_close(color_and_normalize(images, params).double(), expected, rtol=0, atol=1e-5)


def colored(images, *params):
    """The result in 0..1, before normalisation, with the same parameters for each image."""
    return color_and_normalize(images, torch.tensor([params] * len(images))) * STD + MEAN


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_color_is_torchvisions_in_any_order_where_nothing_clips(photo, order):
    images = (100 + tvf.resize(photo, [32, 32]) // 5)[None]  # 100..151
    factors = (0.8, 1.3, 0.6)
    adjust = (tvf.adjust_brightness, tvf.adjust_contrast, tvf.adjust_saturation)
    expected = images / 255
    for k in order:
        expected = adjust[k](expected, factors[k])
    # torchvision's weights of luma are rounded to four digits and sum to 0.9999.
    torch.testing.assert_close(colored(images, *factors, 0.0), expected, rtol=0, atol=2e-4)


def test_hue_turns_chroma_and_leaves_luma_and_gray_alone(photo):
    luma = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    images = (100 + tvf.resize(photo, [32, 32]) // 5)[None]
    plain, turned, opposite = (colored(images, 1.0, 1.0, 1.0, hue) for hue in (0.0, 0.2, 0.5))
    close = {"rtol": 0, "atol": 2e-6}  # float32 rounding
    assert (turned - plain).abs().max() > 0.02
    y = (luma * plain).sum(1, keepdim=True)
    torch.testing.assert_close((luma * turned).sum(1, keepdim=True), y, **close)
    torch.testing.assert_close(opposite - y, y - plain, **close)
    torch.testing.assert_close(colored(images, 1.0, 1.0, 1.0, 1.0), plain, **close)
    gray = images[:, :1].expand(-1, 3, -1, -1)
    torch.testing.assert_close(colored(gray, 1.0, 1.0, 1.0, 0.2), gray / 255, **close)


def test_no_saturation_is_grayscale(photo):
    gray = colored(photo[None], 0.9, 1.2, 0.0, 0.1)
    torch.testing.assert_close(gray, gray[:, :1].expand_as(gray), rtol=0, atol=1e-6)


def test_parameters_that_change_nothing_normalise_alone(photo):
    expected = tvf.normalize(photo[None] / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    torch.testing.assert_close(normalize(photo[None]), expected, rtol=0, atol=1e-6)
    params = draw_color(1, Augment(brightness=0, contrast=0, saturation=0, hue=0, gray=0), sample_rng(0, 0, 0))
    assert params.tolist() == [[1, 1, 1, 0]]
    # The sum of the luma and chroma parts is 1 up to float32 rounding, and the range of values is 5.
    torch.testing.assert_close(color_and_normalize(photo[None], params), expected, rtol=0, atol=2e-6)


def test_each_image_has_its_own_color_whatever_the_batch(photo):
    views = Views(64, Augment(blur=0.5), PRETEXTS["jigsaw"], 0.6)
    samples = [views(photo, sample_rng(0, 0, id)) for id in range(6)]
    pixels = torch.cat([s.pretext for s in samples])
    params = torch.cat([s.pretext_color for s in samples])
    assert len(params.unique(dim=0)) == 54
    together = color_and_normalize(pixels, params)
    for k in (0, 17, 53):
        alone = color_and_normalize(pixels[k : k + 1], params[k : k + 1])
        # The order of a sum may differ with the size of the batch.
        torch.testing.assert_close(together[k : k + 1], alone, rtol=0, atol=2e-6)


def test_images_that_draw_no_blur_are_untouched_by_it(photo):
    images = torch.stack([random_resized_crop(photo, 64, 0.5, sample_rng(0, 0, id)) for id in range(3)])
    params = draw_color(3, Augment(blur=0.5), sample_rng(0, 0, 1))
    params[:, 4] = torch.tensor([0.0, 1.5, 0.0])
    blurred, plain = color_and_normalize(images, params), color_and_normalize(images, params[:, :4])
    assert torch.equal(blurred[::2], plain[::2])
    assert not torch.allclose(blurred[1], plain[1], atol=0.05)
    params[:, 4] = 0
    assert torch.equal(color_and_normalize(images, params), plain)


def test_colors_are_drawn_in_their_ranges():
    params = draw_color(4000, Augment(blur=0.5, hue=0.1, brightness=0.3), np.random.default_rng(0)).numpy()
    brightness, contrast, saturation, hue, sigma = params.T
    colorful, soft = saturation[saturation > 0], sigma[sigma > 0]
    for drawn, low, high in (
        (brightness, 0.7, 1.3),
        (contrast, 0.6, 1.4),
        (colorful, 0.6, 1.4),
        (hue, -0.1, 0.1),
        (soft, 0.1, 2.0),
    ):
        assert stats.kstest(drawn, stats.uniform(low, high - low).cdf).pvalue > 0.001
    assert abs((saturation == 0).mean() - 0.2) < 0.026  # four standard deviations of 4,000 throws
    assert abs((sigma > 0).mean() - 0.5) < 0.032
    assert draw_color(1, Augment(), np.random.default_rng(0)).shape == (1, 4)


def test_color_stays_in_float32_under_autocast(photo):
    params = draw_color(1, Augment(blur=1.0), sample_rng(0, 0, 0))
    expected = color_and_normalize(photo[None], params)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(color_and_normalize(photo[None], params), expected)
