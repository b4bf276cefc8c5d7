"""Engines and precisions side by side: seconds per image, start-up, memory, and how far the scores are apart.

    python benchmarks/compare_engines.py                       # the bundled model and ViT-B/16, on a few pictures
    python benchmarks/compare_engines.py --labels set.csv      # deviations on real images, SRCC with their labels

Every combination runs in a process of its own, all of them in turns and several times; medians are printed.  The
plain loop is open_clip's model on the same ten patches, in float32.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

PHOTOS = Path(__file__).parents[1] / "examples" / "photos"
COMBINATIONS = [
    ("onnxruntime", "float32"),
    ("onnxruntime", "int8"),
    ("torch", "float32"),
    ("torch", "bfloat16"),
    ("open_clip", "float32"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["mini", "ViT-B-16"])
    parser.add_argument("--labels", type=Path, help="images to score, instead of the example photos")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(measure(*options.worker, options.labels)))
        return
    from grmp_score.trainer.metrics import srcc

    with tempfile.TemporaryDirectory() as folder:
        random_b16(Path(folder) / "ViT-B-16")
        for model in options.models:
            source = str(Path(folder) / model) if model == "ViT-B-16" else model
            combinations = [c for c in COMBINATIONS if c[0] != "open_clip" or model == "ViT-B-16"]
            runs: dict[tuple[str, str], list[dict[str, object]]] = {c: [] for c in combinations}
            for _ in range(options.repeats):
                for combination, found in runs.items():
                    found.append(run(source, *combination, options.labels))
            exact = np.array(runs["torch", "float32"][0]["values"])
            base = median(runs["torch", "float32"], "seconds")
            print(f"{model}: {len(exact)} images, compared with torch in float32")
            for (engine, precision), found in runs.items():
                values, seconds = np.array(found[0]["values"]), median(found, "seconds")
                off = np.abs(values - exact)
                columns = [
                    f"{engine:11} {precision:8} {seconds:.3f} s per image, {base / seconds:.2f} times as fast",
                    f"first score {median(found, 'first'):.2f} s, peak {median(found, 'peak'):.0f} MB",
                    f"off by {off.mean():.5f}, at most {off.max():.5f}, SRCC {srcc(values, exact):.4f}",
                ]
                if options.labels:
                    columns.append(f"SRCC with the labels {srcc(values, np.array(found[0]['labels'])):.4f}")
                print("  " + "; ".join(columns), flush=True)


def median(runs: list[dict[str, object]], name: str) -> float:
    return float(np.median([run[name] for run in runs]))  # type: ignore[arg-type]


def run(model: str, engine: str, precision: str, labels: Path | None) -> dict[str, object]:
    """One combination in a process of its own."""
    command = [sys.executable, __file__, "--worker", model, engine, precision]
    command += ["--labels", str(labels)] if labels else []
    found: dict[str, object] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return found


def measure(model: str, engine: str, precision: str, labels: Path | None) -> dict[str, object]:
    """In the process: scores of all images from ready patches, and how long they took."""
    begin = time.perf_counter()
    from grmp_score import Scorer
    from grmp_score.images import read_image
    from grmp_score.model.patches import make_patches
    from grmp_score.pipeline.engines import Engine

    known: list[float] = []
    paths = sorted(PHOTOS.glob("*.jpg"))
    if labels:
        from grmp_score.trainer.data.labels import read_labels

        read = read_labels(labels)
        paths, known = list(read.paths), read.scores.tolist()
    own = "torch" if engine == "open_clip" else engine
    scorer = Scorer.from_pretrained(model, engine=own, precision=precision, device="cpu")
    compute: Engine = PlainLoop(scorer) if engine == "open_clip" else scorer.engine
    values, spent, first = [], [], 0.0
    for path in paths:
        patches = make_patches(read_image(path), scorer.preprocess)
        started = time.perf_counter()
        values.append(float(np.mean(compute.p_high(patches))))
        spent.append(time.perf_counter() - started)
        first = first or time.perf_counter() - begin
    return {"values": values, "labels": known, "seconds": np.median(spent), "first": first, "peak": peak_memory()}


def peak_memory() -> float:
    """Largest resident size of this process in MB, as Linux tells it; NaN elsewhere."""
    status = Path("/proc/self/status")  # ru_maxrss would be the parent's where that is larger
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 1e3 for line in lines if line.startswith("VmHWM")), float("nan"))


class PlainLoop:
    """open_clip's model as its README runs it: all patches of an image in one batch on all cores."""

    name, device, precision = "open_clip", "cpu", "float32"

    def __init__(self, scorer: object) -> None:
        from open_clip.model import CLIP

        self.model = scorer.model  # type: ignore[attr-defined]
        self.clip = CLIP(**self.model.config.backbone.model_cfg).eval()
        self.clip.load_state_dict(self.model.clip.state_dict())

    def p_high(self, patches: np.ndarray) -> list[float]:
        import torch

        with torch.inference_mode():
            features = self.clip.encode_image(torch.from_numpy(patches), normalize=True)
            values: list[float] = self.model.quality_logits(features).softmax(dim=-1)[:, 0].tolist()
            return values


def random_b16(folder: Path) -> None:
    """CLIP ViT-B/16 with random weights: time and memory do not depend on them."""
    import torch

    from grmp_score.config import CLIP_MEAN, CLIP_STD, Backbone, ModelConfig, Preprocess
    from grmp_score.model.clip import architecture
    from grmp_score.model.quality_clip import QualityCLIP
    from grmp_score.weights import Weights, adapter_of

    torch.manual_seed(0)
    preprocess = Preprocess(resize="shorter", size=512, layout="grid", mean=CLIP_MEAN, std=CLIP_STD)
    config = ModelConfig("ViT-B-16", Backbone(architecture("ViT-B-16-quickgelu")), preprocess=preprocess)
    model = QualityCLIP(config)
    model.refresh_text()
    Weights(config, adapter_of(model, []), model.clip.state_dict()).save(folder)


if __name__ == "__main__":
    main()
