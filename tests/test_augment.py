import numpy as np

import minires as mr
from minires import device
from minires.cifar import MEAN, STD

SPLIT = mr.cifar.parse(mr.cifar.synthetic_records(40))


def launch(images, indices, pad, flip, seed, dtype):
    now = device.current()
    _, c, h, w = images.shape
    y = now.empty((len(indices), c, h, w), dtype)
    arrays = [now.to_device(a) for a in (images, indices, np.array(MEAN, dtype), np.array(STD, dtype))]
    device.launch("augment", (len(indices) * c, 4), (32, 8), *arrays, y, c, h, w, pad, flip, seed, scalar=dtype)
    return now.to_host(y)


def normalised(images):
    mean, std = (np.array(v)[:, None, None] for v in (MEAN, STD))
    return (images / 255 - mean) / std


def test_without_augmentation_it_normalises(dtype):
    indices = np.array([3, 39, 3, 0], np.int32)
    y = launch(SPLIT.images, indices, 0, 0, 7, dtype)
    np.testing.assert_allclose(
        y, normalised(SPLIT.images[indices]), rtol=0, atol=1e-6 if dtype == np.float32 else 1e-14
    )


def test_each_image_is_one_of_the_crops_of_itself(dtype):
    """And over many images all 9 x 9 offsets and both directions occur, about equally often."""
    images = np.random.default_rng(1).integers(0, 256, (8, 3, 32, 32), np.uint8)  # noise: no two crops look alike
    indices = np.tile(np.arange(8, dtype=np.int32), 500)
    y = launch(images, indices, 4, 1, 12345, dtype)
    padded = np.pad(images, ((0, 0), (0, 0), (4, 4), (4, 4)))
    crops = {}
    for i in range(8):
        for dy in range(9):
            for dx in range(9):
                crop = normalised(padded[i, :, dy : dy + 32, dx : dx + 32]).astype(np.float32)
                for flipped in (0, 1):
                    pixels = crop[0, 10, ::-1] if flipped else crop[0, 10]
                    crops[i, np.round(pixels[:16], 3).tobytes()] = (
                        dy,
                        dx,
                        flipped,
                        crop[:, :, ::-1] if flipped else crop,
                    )
    seen = []
    for i, image in zip(indices, y.astype(np.float32), strict=True):
        dy, dx, flipped, crop = crops[i, np.round(image[0, 10, :16], 3).tobytes()]
        np.testing.assert_allclose(image, crop, rtol=0, atol=1e-5)
        seen.append((dy, dx, flipped))
    counts = np.unique(seen, axis=0, return_counts=True)[1]
    assert len(counts) == 9 * 9 * 2
    assert counts.min() > 6 and counts.max() < 50  # 25 expected, standard deviation 5


def test_the_seed_decides_everything(dtype):
    indices = np.arange(40, dtype=np.int32)
    first, again, other = (launch(SPLIT.images, indices, 4, 1, seed, dtype) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any((1, 2, 3)).sum() > 35
