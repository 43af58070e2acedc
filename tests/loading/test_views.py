import io
import itertools
import math

import numpy as np
import pytest
import torch
import torchvision.transforms.v2 as tv
import torchvision.transforms.v2.functional as tvf
from PIL import Image
from scipy import stats
from sklearn.datasets import load_sample_image

from pirl.loading.crops import draw_crop, plain_view, random_resized_crop, ten_views
from pirl.loading.decode import decode
from pirl.loading.views import Views, sample_rng
from pirl.permutations import permutation_set
from pirl.pretext import PRETEXTS, cell_side, draw_jigsaw, draw_order, patch_side
from pirl.sections import Augment


@pytest.fixture(scope="module")
def photo():
    """A real photograph (427 x 640), laid out as the decoder does: height, width, channel."""
    return torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1)


def encoded(pixels, format, **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format, **options)
    return file.getvalue()


# Decoding


def test_png_decodes_to_the_same_pixels(photo):
    pixels = photo.permute(1, 2, 0).numpy()
    torch.testing.assert_close(decode(encoded(pixels, "PNG")), photo, rtol=0, atol=0)


def test_jpeg_decodes_as_pillow_decodes_it(photo):
    data = encoded(photo.permute(1, 2, 0).numpy(), "JPEG", quality=90)
    expected = torch.from_numpy(np.array(Image.open(io.BytesIO(data)))).permute(2, 0, 1)
    # Both call libjpeg-turbo, of versions of their own.
    assert (decode(data).int() - expected.int()).abs().max() <= 2


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_gray_images_become_rgb(photo, format):
    image = decode(encoded(photo[0].numpy(), format))
    assert image.shape == photo.shape
    assert (image == image[:1]).all()


def test_cmyk_becomes_rgb(photo):
    file = io.BytesIO()
    Image.fromarray(photo.permute(1, 2, 0).numpy()).convert("CMYK").save(file, "JPEG", quality=95)
    image = decode(file.getvalue())
    assert image.shape == photo.shape
    # Pillow's CMYK is plain inversion, so only JPEG's own loss is left; an inverted image would be 100 off.
    assert (image.float() - photo.float()).abs().mean() < 8


def test_what_is_not_one_whole_8_bit_image_is_refused(photo):
    pixels = photo.permute(1, 2, 0).numpy()
    deep = encoded(pixels[..., 0].astype(np.uint16) * 257, "PNG")
    animated = encoded(pixels, "GIF", save_all=True, append_images=[Image.fromarray(255 - pixels)])
    for data in (b"", b"no image", encoded(pixels, "JPEG")[:9000], deep, animated):
        with pytest.raises(ValueError, match=r"cannot decode|8 bits"):
            decode(data)


# Geometry


@pytest.mark.parametrize(("height", "width"), [(400, 400), (300, 500), (900, 300)])
@pytest.mark.parametrize("area_min", [0.08, 0.6])
def test_crops_are_distributed_as_torchvisions(height, width, area_min):
    rng = np.random.default_rng(0)
    ours = np.array([draw_crop(height, width, area_min, rng) for _ in range(1500)])
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    crop = tv.RandomResizedCrop(8, scale=(area_min, 1))
    drawn = [crop.make_params([image]) for _ in range(1500)]
    theirs = np.array([[p[k] for k in ("top", "left", "height", "width")] for p in drawn])

    def shapes(boxes):
        top, left, h, w = boxes.T
        return h * w, w / h, top, left

    for mine, reference in zip(shapes(ours), shapes(theirs), strict=True):
        # Seeds are fixed; two samples of one distribution fall below 0.001 once in 1,000 (24 are compared).
        assert stats.ks_2samp(mine, reference).pvalue > 0.001


def test_crop_area_and_aspect_are_uniform_where_every_draw_fits():
    # Up to 0.3 of the area even an aspect of 4/3 fits, so nothing is drawn again and the law shows itself.
    rng = np.random.default_rng(0)
    boxes = np.array([draw_crop(20000, 20000, 0.01, rng) for _ in range(8000)])
    areas, aspects = boxes[:, 2] * boxes[:, 3] / 20000**2, boxes[:, 3] / boxes[:, 2]
    small = areas < 0.3
    assert stats.kstest(areas[small], stats.uniform(0.01, 0.29).cdf).pvalue > 0.001
    log_aspect = stats.uniform(math.log(3 / 4), math.log(16 / 9))
    assert stats.kstest(np.log(aspects[small]), log_aspect.cdf).pvalue > 0.001


@pytest.mark.parametrize(("height", "width"), [(40, 500), (500, 40), (333, 77), (100, 100), (100, 120)])
def test_crop_falls_back_to_the_centre_as_torchvision_does(height, width):
    class NeverFits(np.random.Generator):
        def random(self):
            return 1.0  # the whole area at the widest aspect: none of these shapes holds it

    crop = tv.RandomResizedCrop(8, scale=(4, 4))  # four times the area never fits either
    params = crop.make_params([torch.empty(3, height, width)])
    expected = tuple(params[k] for k in ("top", "left", "height", "width"))
    assert draw_crop(height, width, 0.9, NeverFits(np.random.Philox(0))) == expected


def test_resized_crop_is_pillows(photo):
    top, left, h, w = draw_crop(427, 640, 0.3, sample_rng(0, 0, 3))
    crop = photo[:, top : top + h, left : left + w].permute(1, 2, 0).numpy()
    expected = np.asarray(Image.fromarray(crop).resize((100, 100), Image.Resampling.BILINEAR))
    ours = random_resized_crop(photo, 100, 0.3, sample_rng(0, 0, 3)).permute(1, 2, 0).numpy()
    # Both round to 8 bits between the two directions, with fixed-point weights of their own.
    assert np.abs(ours.astype(int) - expected).max() <= 1


def reference_views(image, size, name, augment, crop_min, rng):
    """Both views step by step: torchvision crops the whole, then cells and patches are cut one by one."""

    def crop(side, area_min):
        box = draw_crop(*image.shape[1:], area_min, rng)
        return tvf.resized_crop(image.contiguous(), *box, [side, side], antialias=True)

    view = crop(size, augment.crop_min)
    if rng.random() < augment.flip:
        view = tvf.horizontal_flip(view)
    if name == "none":
        return view, None
    cell, side = round(85 * size / 224), round(64 * size / 224)
    whole = crop(size if name == "rotation" else 3 * cell, crop_min)
    if name in ("rotation", "both"):
        for _ in range(int(rng.integers(4))):
            whole = whole.transpose(1, 2).flip(1)  # a quarter turn to the left
    if name == "rotation":
        return view, (whole.flip(-1) if rng.random() < augment.flip else whole)[None]
    cells = [whole[:, r : r + cell, c : c + cell] for r in (0, cell, 2 * cell) for c in (0, cell, 2 * cell)]
    order, offsets = rng.permutation(9), rng.integers(cell - side + 1, size=(9, 2))
    flips = rng.random(9) < augment.flip
    patches = []
    for k, (y, x), flipped in zip(order, offsets, flips, strict=True):
        patch = cells[k][:, y : y + side, x : x + side]
        patches.append(tvf.horizontal_flip(patch) if flipped else patch)
    return view, torch.stack(patches)


@pytest.mark.parametrize("size", [32, 224])
@pytest.mark.parametrize("name", ["jigsaw", "rotation", "both", "none"])
def test_views_equal_the_plain_reference(photo, name, size):
    views = Views(size, Augment(), PRETEXTS[name], 0.6)
    for id in range(12):
        sample = views(photo, sample_rng(5, 1, id))
        image, pretext = reference_views(photo, size, name, Augment(), 0.6, sample_rng(5, 1, id))
        assert torch.equal(sample.image, image)
        assert (sample.pretext is None) == (pretext is None)
        if pretext is not None:
            assert torch.equal(sample.pretext, pretext)


@pytest.mark.parametrize(("size", "cell", "patch"), [(224, 85, 64), (32, 12, 9), (64, 24, 18), (16, 6, 5)])
def test_sizes_follow_the_image_size(photo, size, cell, patch):
    for name, shape in (("jigsaw", (9, 3, patch, patch)), ("rotation", (1, 3, size, size))):
        views = Views(size, Augment(), PRETEXTS[name], 0.6)
        sample = views(photo, sample_rng(0, 0, 0))
        assert sample.image.shape == (3, size, size)
        assert sample.pretext.shape == shape
        assert sample.pretext_color.shape == (shape[0], 4)
    assert (cell_side(size), patch_side(size)) == (cell, patch)


def cuts_of(cell, patch, rng, permutations=None):
    order, _ = draw_order(permutations, rng)
    return draw_jigsaw(order, cell, patch, 0.5, rng)


def test_every_order_of_the_cells_is_as_likely():
    draws = 9000
    orders = np.empty((draws, 9), int)
    for id in range(draws):
        cuts = np.array(cuts_of(85, 64, sample_rng(0, 0, id)))
        orders[id] = cuts[:, 0] // 85 * 3 + cuts[:, 1] // 85
    assert (np.sort(orders, 1) == np.arange(9)).all()
    # Each cell at each place: 81 counts of mean 1,000, with 64 degrees of freedom; above 112 once in 5,000.
    counts = np.stack([np.bincount(orders[:, place], minlength=9) for place in range(9)])
    assert ((counts - draws / 9) ** 2 / (draws / 9)).sum() < 112
    # 9,000 of 362,880 orders: about 110 come twice. A list of 2,000, as in the covariant task, shows at once.
    assert len(np.unique(orders, axis=0)) > 8800


def test_patches_lie_anywhere_in_their_cells_and_half_are_mirrored():
    cuts = np.array([cuts_of(12, 9, sample_rng(1, 0, id)) for id in range(1000)])
    for axis in (0, 1):
        offsets = np.bincount(cuts[:, :, axis].ravel() % 12)
        assert len(offsets) == 4
        assert stats.chisquare(offsets).pvalue > 0.001
    mirrored = cuts[:, :, 2]
    assert abs(mirrored.mean() - 0.5) < 0.02  # four standard deviations of 9,000 throws
    assert len(np.unique(mirrored, axis=0)) > 400  # each patch by itself: nearly all 512 patterns


def test_all_four_rotations_come(photo):
    # With the whole square and no flip, the pretext view is one of four known images.
    square = photo[:, :427, :427]
    views = Views(64, Augment(flip=0), PRETEXTS["rotation"], 1.0)
    whole = random_resized_crop(square, 64, 1.0, np.random.default_rng(0))
    turned = [whole.rot90(k, (1, 2)) for k in range(4)]
    counts = np.zeros(4)
    for id in range(80):
        sample = views(square, sample_rng(0, 0, id))
        distance = [(sample.pretext[0].float() - t.float()).abs().mean() for t in turned]
        counts[int(np.argmin(distance))] += 1
        assert sample.target == np.argmin(distance)
    assert stats.chisquare(counts).pvalue > 0.001


def test_a_sample_depends_on_seed_epoch_and_id_alone(photo):
    views = Views(32, Augment(blur=0.5), PRETEXTS["jigsaw"], 0.6)

    def flat(seed, epoch, id):
        sample = views(photo, sample_rng(seed, epoch, id))
        return torch.cat([t.flatten().float() for t in vars(sample).values() if isinstance(t, torch.Tensor)])

    first = flat(0, 0, 7)
    views(photo, sample_rng(0, 0, 8))  # whatever was drawn before
    assert torch.equal(flat(0, 0, 7), first)
    others = [flat(1, 0, 7), flat(0, 1, 7), flat(0, 0, 8), flat(2**32 - 1, 2**20, 2**40)]
    for a, b in itertools.combinations([first, *others], 2):
        assert not torch.equal(a, b)


def test_pixels_stay_in_the_decoders_layout(photo):
    for name in ("jigsaw", "rotation", "both"):
        for id in range(8):
            sample = Views(32, Augment(), PRETEXTS[name], 0.6)(photo, sample_rng(0, 0, id))
            assert sample.image.movedim(0, -1).is_contiguous()
            assert sample.pretext.movedim(1, -1).is_contiguous()


@pytest.mark.parametrize("size", [32, 224])
@pytest.mark.parametrize("shape", [(3, 427, 640), (3, 640, 427), (3, 32, 32), (3, 100, 101)])
def test_plain_view_is_torchvisions_resize_and_centre_crop(photo, shape, size):
    image = tvf.resize(photo, shape[1:])
    expected = tvf.center_crop(tvf.resize(image, [round(size * 256 / 224)]), [size, size])
    assert torch.equal(plain_view(image, size), expected)
    five = torch.stack(tvf.five_crop(tvf.resize(image, [round(size * 256 / 224)]), [size, size]))
    assert torch.equal(ten_views(image, size), torch.cat([five, tvf.horizontal_flip(five)]))
    assert torch.equal(five[4], expected)


def test_the_target_of_what_is_mirrored_is_how_its_mirror_image_is_turned(photo):
    square = photo[:, :427, :427]
    whole = random_resized_crop(square, 64, 1.0, np.random.default_rng(0))
    turned = [whole.flip(-1).rot90(k, (1, 2)).float() for k in range(4)]
    views = Views(64, Augment(flip=1), PRETEXTS["rotation"], 1.0)
    for id in range(20):
        sample = views(square, sample_rng(0, 0, id))
        assert sample.target == np.argmin([(sample.pretext[0].float() - t).abs().mean() for t in turned])


def test_patches_lie_in_the_order_of_the_set_and_the_target_is_its_row():
    orders = permutation_set(2, 30)
    seen = set()
    for id in range(400):
        order, number = draw_order(orders, sample_rng(0, 0, id))
        assert order == orders[number].tolist()
        cuts = draw_jigsaw(order, 12, 9, 0.5, sample_rng(1, 0, id))
        assert [top // 12 * 3 + left // 12 for top, left, _ in cuts] == order
        seen.add(number)
    assert seen == set(range(30))


def test_a_covariant_view_is_alone_and_has_its_target(photo):
    orders = permutation_set(2, 30)
    views = Views(32, Augment(), PRETEXTS["both"], 0.6, orders, with_image=False)
    targets = set()
    for id in range(40):
        sample = views(photo, sample_rng(0, 0, id))
        assert sample.image is None
        assert (sample.pretext.shape, sample.pretext_color.shape) == ((9, 3, 9, 9), (9, 4))
        targets.add(sample.target)
    assert max(targets) < 4 * 30
    assert len({target % 4 for target in targets}) == 4
