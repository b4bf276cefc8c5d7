"""A folder of JPEGs against the bare engine on ready patches: what reading, decoding and cutting cost.

    python benchmarks/folder.py                                 # 0.8 and 12 megapixels, the bundled model
    python benchmarks/folder.py --precision int8 --megapixels 12
    python benchmarks/folder.py --device cuda --precision bfloat16 --images 256 --peak 989   # TFLOP/s of an H100

Makes JPEGs out of the example photos, enlarged and with a camera's noise, and takes both in turns: the engine on
patches that are ready, as many images at a time as the folder's run takes, and `Scorer.score_many` of the paths.
Prints images per second of the medians and their ratio, the same of processor time (which other programs on the
machine disturb less), what one image takes in each step on one core, and with ``--peak`` the share of a device's
floating-point operations per second that ready patches get.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from grmp_score import Scorer
from grmp_score.images import read_image
from grmp_score.model.patches import make_patches

PHOTOS = sorted((Path(__file__).parents[1] / "examples" / "photos").glob("*.jpg"))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="mini")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--peak", type=float, help="the device's TFLOP/s in this precision, by its maker")
    parser.add_argument("--megapixels", type=float, nargs="+", default=[0.8, 12.0])
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    scorer = Scorer.from_pretrained(args.model, precision=args.precision, device=args.device)
    for megapixels in args.megapixels:
        with tempfile.TemporaryDirectory() as folder:
            paths = [make_jpeg(Path(folder) / f"{i}.jpg", i, megapixels) for i in range(args.images)]
            compare(scorer, paths, megapixels, args.repeats, args.peak)


def make_jpeg(path: Path, number: int, megapixels: float) -> Path:
    """One of the photos as a camera would give it, 4:3."""
    width = round((megapixels * 1e6 * 4 / 3) ** 0.5)
    size = (width, round(width * 3 / 4))
    with Image.open(PHOTOS[number % len(PHOTOS)]) as photo:
        pixels = np.asarray(photo.convert("RGB").resize(size, Image.Resampling.LANCZOS), dtype=np.float32)
    noise = np.random.default_rng(number).standard_normal(pixels.shape, dtype=np.float32)
    Image.fromarray(np.clip(pixels + 3 * noise, 0, 255).astype(np.uint8)).save(path, quality=92)
    return path


def compare(scorer: Scorer, paths: list[Path], megapixels: float, repeats: int, peak: float | None) -> None:
    ready = [make_patches(read_image(path), scorer.preprocess) for path in paths]
    step = scorer.batch_size
    batches = [np.concatenate(ready[i : i + step]) for i in range(0, len(ready), step)]
    ways: dict[str, Callable[[], object]] = {
        "ready patches": lambda: [scorer.engine.p_high(batch) for batch in batches],
        "folder": lambda: list(scorer.score_many(paths)),
    }
    for way in ways.values():  # once without looking at the clock
        way()
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            spent[name].append(timed(way))
    (bare, bare_cpu), (whole, whole_cpu) = (np.median(spent[name], axis=0) / len(paths) for name in ways)
    size = sum(path.stat().st_size for path in paths) / len(paths) / 1e6
    print(f"{megapixels:g} megapixels, JPEG of {size:.1f} MB, {scorer.precision}:", end=" ")
    print(f"ready patches {1 / bare:.2f} images/s, folder {1 / whole:.2f}: {bare / whole:.1%}", end="; ")
    print(f"processor time per image {bare_cpu:.3f} and {whole_cpu:.3f} s: {bare_cpu / whole_cpu:.1%}")
    if peak is not None:
        done = teraflop(scorer, ready[0]) / bare
        print(f"  ready patches: {done:.3g} TFLOP/s, {done / peak:.1%} of the peak")
    data = [path.read_bytes() for path in paths]
    pictures = [read_image(io.BytesIO(file)) for file in data[:4]]
    decode = timed(lambda: [read_image(io.BytesIO(file)) for file in data])[1] / len(data)
    cut = timed(lambda: [make_patches(picture, scorer.preprocess) for picture in pictures])[1] / len(pictures)
    print(f"  of one image: decoding {decode * 1e3:.0f} ms, resizing and cutting {cut * 1e3:.0f} ms", flush=True)


def teraflop(scorer: Scorer, patches: np.ndarray) -> float:
    """Operations of an image's patches in the model, a multiplication and an addition being two."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        scorer.model(torch.from_numpy(patches).to(scorer.device))
    return float(counter.get_total_flops()) / 1e12


def timed(run: Callable[[], object]) -> tuple[float, float]:
    """Seconds on the wall and of this process's threads."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - cpu


if __name__ == "__main__":
    main()
