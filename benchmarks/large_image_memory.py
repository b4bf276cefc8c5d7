"""Peak memory of reading one large JPEG and cutting its patches, in a process of its own.

    python benchmarks/large_image_memory.py --megapixels 100

Prints the peak resident memory before and after, in MB of 10^6 bytes, and the decoded size (3 bytes per pixel).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

_MEASURE = """
import resource, sys
import numpy, torch
from PIL import Image, ImageCms, JpegImagePlugin
from grmp_score.config import Preprocess
from grmp_score.images import read_image
from grmp_score.model.patches import make_patches
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
warm = Image.new("RGB", (300, 300))
p = Preprocess(**eval(sys.argv[2]))
make_patches(warm, p)
before = peak()
size = read_image(sys.argv[1]).size if sys.argv[3] == "read" else make_patches(read_image(sys.argv[1]), p).shape
print(f"{before:.0f} {peak():.0f}", size)
"""

#: The bundled model's preprocessing, patches at full size, and that of official checkpoints.
PREPROCESS = {
    "shorter 512": {"resize": "shorter", "size": 512, "scales": (1.0, 0.75), "patches": 10, "layout": "grid"},
    "none": {"patches": 10},
    "exact 244": {"resize": "exact", "size": 244, "antialias": False, "layout": "center", "patches": 1},
}


def measure(path: Path, preprocess: dict[str, object], what: str = "patches") -> tuple[float, float]:
    """Peak memory of a new process in MB: with all libraries loaded, and after the picture."""
    command = [sys.executable, "-c", _MEASURE, str(path), repr(preprocess), what]
    before, after = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[:2]
    return float(before), float(after)


def make_jpeg(path: Path, megapixels: float, orientation: int = 1) -> None:
    """A textured photo-like JPEG of 4:3."""
    width = round((megapixels * 1e6 * 4 / 3) ** 0.5)
    height = round(megapixels * 1e6 / width)
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    small.resize((width, height), Image.Resampling.BICUBIC).save(path, quality=90, exif=exif)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megapixels", type=float, default=100)
    args = parser.parse_args()
    print(f"decoded size: {args.megapixels * 3:.0f} MB")
    with tempfile.TemporaryDirectory() as folder:
        for orientation in (1, 6):
            path = Path(folder, f"{orientation}.jpg")
            make_jpeg(path, args.megapixels, orientation)
            for name, preprocess in PREPROCESS.items():
                before, after = measure(path, preprocess)
                print(
                    f"orientation {orientation}, {name:12s}: {after - before:5.0f} MB over {before:.0f} MB before"
                )


if __name__ == "__main__":
    main()
