"""Scores a table of image paths with Spark's mapInPandas: one model per Python worker, frames of rows in and out.

    spark-submit examples/spark_map_in_pandas.py photos.parquet scores.parquet

`score_partition` is all there is to it, and takes any iterator of pandas frames; without Spark:

    python examples/spark_map_in_pandas.py photos.csv scores.csv
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pandas as pd

from grmp_score.integrations.pandas import score_frame

#: The columns that come out, in Spark's words.
SCHEMA = "path string, score double, standard_error double, label double, percentile double, error string"


def score_partition(frames: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
    """Scores the frames of one partition; the model is made once, by the worker that needs it."""
    import torch

    from grmp_score import Scorer

    torch.set_num_threads(1)  # Spark runs one Python worker per core
    scorer = Scorer(device="cpu", workers=1)
    for frame in frames:
        yield score_frame(frame[["path"]], scorer=scorer)


def with_spark(source: str, target: str) -> None:
    """The job on a cluster; the paths must lead to the same files on every machine."""
    from pyspark.sql import SparkSession

    spark = SparkSession.builder.getOrCreate()
    spark.read.parquet(source).mapInPandas(score_partition, schema=SCHEMA).write.parquet(target)


def without_spark(source: str, target: str) -> None:
    """The same over a CSV in pieces of 100 rows."""
    pieces = pd.read_csv(source, chunksize=100)
    pd.concat(score_partition(iter(pieces))).to_csv(target, index=False)


if __name__ == "__main__":
    run = without_spark if sys.argv[1].endswith(".csv") else with_spark
    run(*sys.argv[1:])
