"""Scores a folder of photos on a Ray cluster, or on this machine as a cluster of its own.

python examples/score_with_ray.py examples/photos scores.csv
"""

from __future__ import annotations

import sys

import ray.data

from grmp_score.images.find import find_images
from grmp_score.integrations.ray import score_dataset


def main(folder: str, target: str) -> None:
    """One row per photo, the best first."""
    photos = ray.data.from_items([{"path": path} for path in find_images([folder])])
    # As many workers with a model and a core each as there is room for; num_gpus=1 would give each a GPU.
    scored = score_dataset(photos, column="path")
    scored.to_pandas().sort_values("score", ascending=False).to_csv(target, index=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
