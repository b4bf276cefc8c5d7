"""Ten thousand small JPEGs through the command line: memory, the cache, and going on after kill -9.

    python benchmarks/many_images.py                 # 10,000 images; minutes
    python benchmarks/many_images.py --images 300    # seconds

Makes images and a tiny model with random weights (so that the time goes into all but the model) in a temporary
folder, runs `grmp-score` as a process, and prints what it measured as JSON: the first run, the same from the
cache by content and by the files' times, and how many times faster and cheaper in processor time these are;
then runs that are killed and continued. On a busy machine the processor seconds say more than those on the
wall. Ends with 1 when a row is missing or stands there twice, or when a cached run gives other rows. Memory is
read from /proc, so it runs on Linux.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from grmp_score.config import Backbone, ModelConfig, Preprocess, PromptConfig
from grmp_score.model.quality_clip import QualityCLIP
from grmp_score.weights.folder import Weights, adapter_of

ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, "-c", "from grmp_score.cli.main import main; main()"]
CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"layers": 3, "width": 32, "head_width": 16, "patch_size": 16, "image_size": 32},
    "text_cfg": {"width": 32, "heads": 2, "layers": 2, "vocab_size": 600, "context_length": 24},
}


def make_images(folder: Path, count: int) -> None:
    """Distinct gradients of 64x64 pixels, a hundred to a folder, dated back so that their times can be trusted."""
    ramp = np.linspace(0, 1, 64)
    for i in range(count):
        path = folder / f"{i // 100:04d}" / f"{i:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        slope, across, level = (i % 97) / 97, (i // 97 % 89) / 89, (i // 8633) / 8
        planes = [slope * ramp + level, across * ramp[:, None] + 0 * ramp, (1 - slope) * ramp]
        pixels = np.stack([np.broadcast_to(plane, (64, 64)) for plane in planes], axis=-1)
        Image.fromarray((np.clip(pixels, 0, 1) * 255).astype(np.uint8)).save(path, quality=95)
        with open(path, "ab") as file:
            file.write(f"{i}".encode())  # distinct bytes even where the gradients round to the same
        os.utime(path, (1_500_000_000, 1_500_000_000))


def make_model(folder: Path) -> Path:
    """A model of some 50,000 random parameters that takes four patches of 32x32."""
    torch.manual_seed(0)
    config = ModelConfig(
        name="tiny",
        backbone=Backbone(model_cfg=CLIP),
        prompts=PromptConfig(n_visual=2),
        preprocess=Preprocess(patch_size=32, patches=4),
        adapted_blocks=1,
    )
    net = QualityCLIP(config)
    net.refresh_text()
    return Weights(config, adapter_of(net, []), dict(net.clip.state_dict())).save(folder)


def start(*args: str | Path) -> subprocess.Popen[bytes]:
    """The command as a process."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*COMMAND, *map(str, args)], env=env)


def resident_mb(process: subprocess.Popen[bytes]) -> float | None:
    """Resident memory of a process, in MB; None when it has ended."""
    try:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS")), None)


def lines_in(path: Path) -> int:
    """Complete rows of a file that may not exist yet."""
    try:
        return path.read_bytes().count(b"\n")
    except OSError:
        return 0


def watch(process: subprocess.Popen[bytes], out: Path, mark: int) -> dict[int, float]:
    """Memory when the results first have ``mark`` rows, and the last that was seen; waits for the end."""
    partial, samples = out.with_name(f"{out.name}.partial"), dict[int, float]()
    while process.poll() is None:
        done, memory = lines_in(partial), resident_mb(process)
        if done >= mark and memory is not None:
            samples[done] = round(memory, 1)
        time.sleep(0.02)
    if process.returncode != 0:
        sys.exit(f"grmp-score ended with {process.returncode}")
    return {rows: samples[rows] for rows in sorted({min(samples), max(samples)})} if samples else {}


def timed(*args: str | Path) -> tuple[float, float]:
    """Wall-clock and processor seconds of a run to its end."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    process = start(*args)
    if process.wait() != 0:
        sys.exit(f"grmp-score ended with {process.returncode}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return round(time.perf_counter() - began, 2), round(used, 2)


def rows(path: Path) -> list[dict[str, object]]:
    """Results, parsed."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def main() -> None:
    """Runs everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--model", help="weights to use instead of the tiny ones, e.g. mini")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        photos = work / "photos"
        make_images(photos, args.images)
        model = args.model or make_model(work / "tiny")
        common = ["-m", model, "--quiet", photos]
        result: dict[str, object] = {"images": args.images}

        # How long nothing takes: starting Python, importing torch, loading the model.
        one = next(photos.rglob("*.jpg"))
        result["start_seconds"], result["start_cpu_seconds"] = timed("-m", model, "-q", one, "-o", work / "one.csv")

        # One run to fill the cache, with a look at its memory on the way.
        first = work / "first.jsonl"
        cache = ["--cache", work / "c.sqlite", "--trust-mtime"]
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        memory = watch(start(*common, *cache, "-o", first), first, args.images // 10)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        result["first_seconds"] = round(time.perf_counter() - began, 2)
        used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        result["first_cpu_seconds"] = round(used, 2)
        result["resident_mb_at_rows"] = memory

        # The same again from the cache: by content, and by the files' times.
        expected = rows(first)
        for what, options in (("hashing", cache[:2]), ("stat", cache)):
            again = work / f"{what}.jsonl"
            wall, cpu = timed(*common, *options, "-o", again)
            result[f"cached_by_{what}"] = {
                "seconds": wall,
                "cpu_seconds": cpu,
                "times_faster": round(float(str(result["first_seconds"])) / wall, 1),
                "times_less_cpu": round(used / cpu, 1),
                "same_rows": rows(again) == expected,
            }

        # Killed in the middle, twice, then to the end.
        out = work / "resumed.jsonl"
        killed = []
        for share in (0.3, 0.6):
            process = start(*common, "--resume", out)
            while lines_in(out) < share * args.images and process.poll() is None:
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed.append(lines_in(out))
            with open(out, "ab") as file:
                file.write(b'{"path": "torn')  # the worst that a kill can leave
        timed(*common, "--resume", out)
        resumed = rows(out)
        paths = [str(row["path"]) for row in resumed]
        result["killed_at_rows"] = killed
        result["each_image_once"] = sorted(paths) == sorted(str(p) for p in photos.rglob("*.jpg"))
        result["same_scores"] = resumed == expected
        print(json.dumps(result, indent=2))
        ok = result["each_image_once"] and result["same_scores"]
        cached_same = all(result[f"cached_by_{w}"]["same_rows"] for w in ("hashing", "stat"))  # type: ignore[index]
        sys.exit(0 if ok and cached_same else 1)


if __name__ == "__main__":
    main()
