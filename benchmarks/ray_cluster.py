"""A Ray cluster of one and of two nodes with one core each, on this machine: images per second, start and all.

    python benchmarks/ray_cluster.py                # 200 images
    python benchmarks/ray_cluster.py --images 500

Links the example photos under many names and scores them with `score_paths` on a cluster of two nodes, first with
one worker, then with two.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from grmp_score import FailedScore
from grmp_score.integrations.ray import score_paths

PHOTOS = sorted((Path(__file__).parents[1] / "examples" / "photos").glob("*.jpg"))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=200)
    args = parser.parse_args()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{i:05}.jpg" for i in range(args.images)]
        for i, path in enumerate(paths):
            path.symlink_to(PHOTOS[i % len(PHOTOS)])
        ray.init(address=cluster.address)
        for workers in (1, 2):
            began, first, wrong = time.perf_counter(), 0.0, 0
            for score in score_paths(map(str, paths), address=cluster.address, workers=workers):
                first = first or time.perf_counter() - began
                wrong += isinstance(score, FailedScore)
            seconds = time.perf_counter() - began
            print(f"{workers} workers of one core: {args.images / seconds:.2f} images/s", end=" ")
            print(f"({seconds:.0f} s, {first:.0f} s to the first score, {wrong} failed)", flush=True)
        ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main()
