"""Classify pictures with the ResNet-20 that comes with minires, or with one of your own.

    python examples/classify.py examples/results/cat.jpg

Any file will do that Pillow reads, which is not a part of minires: pip install pillow.

A picture is cut to its middle square and shrunk to the 32 x 32 pixels of CIFAR-10. The network knows ten classes and
nothing else: of a picture of something else it names the class that it finds most like it.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np
from evaluate import WEIGHTS, logits_of

import minires as mr

try:
    from PIL import Image, ImageOps
except ImportError:
    sys.exit("error: pictures are read with Pillow, which is not installed: pip install pillow")


def read_picture(path: str) -> np.ndarray:
    """The middle square of a picture as (32, 32, 3) uint8. Raises ValueError where it cannot be read."""
    try:
        with Image.open(path) as picture:
            upright = to_rgb(ImageOps.exif_transpose(picture))
    except (OSError, SyntaxError, Image.DecompressionBombError, ValueError) as error:  # SyntaxError: for broken PNGs
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"cannot read the picture {path}: {reason}") from None
    square = ImageOps.fit(upright, (32, 32), Image.Resampling.LANCZOS)
    return np.asarray(square)


def to_rgb(picture: Image.Image) -> Image.Image:
    """8 bits of red, green and blue; behind what is transparent, white. Raises ValueError where values cannot be told.

    Integers of more than 8 bits are taken to fill 16; floating-point values lie in 0 .. 1 or in 0 .. 255.
    """
    if picture.mode.startswith("I") or picture.mode == "F":
        values = np.asarray(picture).astype(np.float64)
        least, most = (values.min(), values.max()) if np.isfinite(values).all() else (-np.inf, np.inf)
        limit = 255 if picture.mode == "F" else 65535
        if least < 0 or most > limit:
            raise ValueError(f"its values, {least:g} to {most:g}, do not lie in 0 .. {limit}")
        scale = 1 / 257 if limit == 65535 else 255 if most <= 1 else 1
        return Image.fromarray(np.rint(values * scale).astype(np.uint8)).convert("RGB")
    if picture.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in picture.info:
        straight = picture.convert("RGBA")
        white = Image.new("RGBA", straight.size, "white")
        return Image.alpha_composite(white, straight).convert("RGB")
    if picture.mode not in ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"):
        raise ValueError(f"its mode, {picture.mode}, is not known here")
    return picture.convert("RGB")


def softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="The three most likely classes of each picture.")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="a picture file")
    parser.add_argument("--weights", default=WEIGHTS, help="best.safetensors of a run (default: the shipped)")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    arguments = parser.parse_args()
    if arguments.device != "auto":
        mr.set_device(arguments.device)
    images = np.stack([read_picture(path) for path in arguments.images])
    state, metadata = mr.checkpoint.load(arguments.weights)
    classes = mr.cifar.SYNTHETIC_CLASSES if metadata.get("dataset") == "synthetic" else mr.cifar.CLASSES
    split = mr.cifar.Split(images, np.zeros(len(images), np.int32))
    probabilities = softmax(logits_of(mr.resnet.from_state_dict(state), split))
    for path, row in zip(arguments.images, probabilities, strict=True):
        best = np.argsort(-row)[:3]
        print(f"{path}:  " + ", ".join(f"{classes[i]} {row[i]:.1%}" for i in best))


if __name__ == "__main__":
    try:
        main()
    except (mr.DeviceError, mr.checkpoint.CheckpointError, ValueError, KeyError) as e:
        sys.exit(f"error: {e.args[0] if isinstance(e, KeyError) else e}")
