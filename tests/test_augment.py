import numpy as np

import minires as mr
from minires import device
from minires.cifar import MEAN, STD

SPLIT = mr.cifar.parse(mr.cifar.synthetic_records(40))


def launch(images, indices, pad, flip, seed, dtype):
    now = device.current()
    _, h, w, c = images.shape
    y = now.empty((len(indices), h, w, c), dtype)
    arrays = [now.to_device(a) for a in (images, indices, np.array(MEAN, dtype), np.array(STD, dtype))]
    grid = (len(indices) * h, -(-w * c // 40))  # a row has several blocks
    device.launch("augment", grid, (40,), *arrays, y, h, w, c, pad, flip, seed, scalar=dtype)
    return now.to_host(y)


def normalised(images):
    mean, std = (np.array(v) for v in (MEAN, STD))
    return (images / 255 - mean) / std


def test_without_augmentation_it_normalises(dtype):
    indices = np.array([3, 39, 3, 0], np.int32)
    y = launch(SPLIT.images, indices, 0, 0, 7, dtype)
    np.testing.assert_allclose(y, normalised(SPLIT.images[indices]), rtol=0, atol=1e-6 if dtype == np.float32 else 1e-14)


def splitmix64(state):
    """Steele, Lea and Flood 2014, figure 17, in Python's integers."""
    mask = 2**64 - 1
    state = (state + 0x9E3779B97F4A7C15) & mask
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
    return state ^ (state >> 31)


def test_crops_and_flips_are_those_of_the_hash(dtype):
    assert splitmix64(0) == 0xE220A8397B1DCDAF  # the first output of the published generator for the seed 0
    images = np.random.default_rng(1).integers(0, 256, (8, 13, 35, 3), np.uint8)
    indices = np.tile(np.arange(8, dtype=np.int32), 50)
    y = launch(images, indices, 4, 1, 12345, dtype)
    padded = np.pad(images, ((0, 0), (4, 4), (4, 4), (0, 0)))
    seen = []
    for b, (i, image) in enumerate(zip(indices, y, strict=True)):
        random = splitmix64((splitmix64(12345) + b) % 2**64)
        dy, dx, flipped = random % 9, (random >> 20) % 9, random >> 63
        crop = normalised(padded[i, dy : dy + 13, dx : dx + 35])
        expected = crop[:, ::-1] if flipped else crop
        np.testing.assert_allclose(image, expected, rtol=0, atol=1e-6 if dtype == np.float32 else 1e-14)
        seen.append((dy, dx, flipped))
    rows, columns, flips = zip(*seen, strict=True)
    assert set(rows) == set(columns) == set(range(9))
    assert 150 < sum(flips) < 250


def test_the_seed_decides_everything(dtype):
    indices = np.arange(40, dtype=np.int32)
    first, again, other = (launch(SPLIT.images, indices, 4, 1, seed, dtype) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any((1, 2, 3)).sum() > 35
