"""Scores in pandas frames.  pandas is imported when it is needed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grmp_score.errors import MissingExtraError
from grmp_score.integrations.tables import check_columns, columns_of, image_of_cell
from grmp_score.scorer import Scorer

if TYPE_CHECKING:
    import pandas


def score_frame(
    df: pandas.DataFrame, column: str = "path", *, scorer: Scorer | None = None, prefix: str = ""
) -> pandas.DataFrame:
    """Scores the images that a pandas frame names or holds.

    Args:
        df: a frame with a column of paths, encoded images (bytes), or arrays as `Scorer.score` takes them.
        column: the column of images.
        scorer: what scores; None makes one of the bundled model.
        prefix: put before the names of the new columns.

    Returns:
        A copy with the same index and columns, and score (p(high quality), 0..1, higher is better), standard_error,
        label and percentile (float64, NaN where there is none) and error (text or None).  An image that cannot be
        read has the reason in error; so has a row without an image.

    Raises:
        MissingExtraError: pandas is not installed.
        ConfigError: the column of images is missing, or one of the new columns is there already.
    """
    try:
        import pandas
    except ImportError as error:
        raise MissingExtraError("score_frame", "pandas", "pandas") from error
    check_columns(list(df.columns), column, prefix)
    scorer = scorer or Scorer()
    scores = list(scorer.score_many(image for _, image in (image_of_cell(value) for value in df[column])))
    new = {
        name: pandas.Series(values, index=df.index, dtype=object if name == f"{prefix}error" else "float64")
        for name, values in columns_of(scores, prefix).items()
    }
    return pandas.concat([df, pandas.DataFrame(new, index=df.index)], axis=1)
