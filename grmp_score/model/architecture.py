"""What a model configuration says about the towers, without making them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from grmp_score.errors import ConfigError

#: Entry of the model configuration that open_clip does not know; see `clip.build_clip`.
FEATURE_BLOCKS = "readout_blocks"


def feature_blocks(model_cfg: Mapping[str, Any], depth: int) -> tuple[int, ...] | None:
    """Blocks of a tower of this depth, from 0, that the image features are made of; None: open_clip's own way."""
    asked = model_cfg.get(FEATURE_BLOCKS, 1)
    if asked == 1 and asked is not True:
        return None
    numbers = asked
    if isinstance(asked, int) and not isinstance(asked, bool) and asked > 1:
        numbers = range(depth - asked + 1, depth + 1)
    if (
        not isinstance(numbers, (range, list, tuple))
        or not numbers
        or not all(isinstance(n, int) and not isinstance(n, bool) and 1 <= n <= depth for n in numbers)
        or sorted(set(numbers)) != list(numbers)
    ):
        raise ConfigError(
            f"{FEATURE_BLOCKS} must be a number of blocks or rising numbers of blocks, 1 to {depth}, got {asked!r}"
        )
    return tuple(n - 1 for n in numbers)
