"""What notebooks show of a score and of an explanation: HTML that holds its pictures and fetches nothing."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from grmp_score.display import COLOUR_SCALE, colours, css_colour, data_uri, html_templates, jpeg, shrink
from grmp_score.errors import GrmpScoreError
from grmp_score.images.read import read_image

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

#: Longer side of the pictures, in pixels.
SIZE = 320

# Text takes the notebook's own colours, so that it can be read on light and on dark ground.
_MACROS = """
{% macro heading() %}
<div><b>{{ "%.3f" | format(value) }}</b>
{%- if standard_error is not none %} ± {{ "%.3f" | format(standard_error) }}{% endif %}
{% if verdict %}, {{ verdict }}{% endif %}</div>
{% endmacro %}
{% macro image(src, alt) %}
<img src="{{ src }}" alt="{{ alt }}" style="display:block;max-width:100%;border-radius:4px">
{% endmacro %}
"""

_SCORE = """
<div style="max-width:{{ size }}px">
{% if picture %}
{{ image(picture, path) }}
{% endif %}
<div style="height:8px;border-radius:4px;background:rgba(128,128,128,.3);margin:6px 0;overflow:hidden">
<div style="height:100%;width:{{ "%.1f" | format(100 * value) }}%;background:{{ value | colour }}"></div>
</div>
{{ heading() }}
{% if path %}
<div style="overflow-wrap:anywhere;opacity:.75">{{ path }}</div>
{% endif %}
</div>
"""

_EXPLANATION = """
<div>
{{ heading() }}
{% if path %}
<div style="overflow-wrap:anywhere;opacity:.75">{{ path }}</div>
{% endif %}
<div style="display:flex;flex-wrap:wrap;gap:12px;margin:6px 0">
{% if picture %}
{{ image(picture, path) }}
{% endif %}
{{ image(heat_map, "heat map of quality") }}
</div>
<div style="display:flex;gap:8px;align-items:center">0 bad
<div style="height:8px;width:160px;border-radius:4px;background:linear-gradient(to right
{%- for share, rgb in scale %}, rgb{{ rgb }} {{ "%d" | format(100 * share) }}%{% endfor %})"></div>
1 good; quality over the image from {{ dense_patches }} patches</div>
</div>
"""


def score_html(value: float, standard_error: float | None, verdict: str | None, path: str | None) -> str:
    """A score: the picture, if it lies on this machine and can be read, with a bar and the verdict.

    Args:
        value, standard_error, verdict, path: as in `Score`.
    """
    return _render(
        _SCORE,
        value=value,
        standard_error=standard_error,
        verdict=verdict,
        path=path,
        picture=_picture(path),
        size=SIZE,
    )


def explanation_html(
    value: float,
    standard_error: float | None,
    verdict: str | None,
    path: str | None,
    heat: NDArray[np.float32],
    dense_patches: int,
) -> str:
    """An explanation: the picture, if it lies on this machine and can be read, next to the heat map.

    Args:
        value, standard_error, verdict, path: as in `Score`.
        heat, dense_patches: as in `Explanation`.
    """
    from PIL import Image

    return _render(
        _EXPLANATION,
        value=value,
        standard_error=standard_error,
        verdict=verdict,
        path=path,
        picture=_picture(path),
        heat_map=_thumbnail(Image.fromarray(colours(heat))),
        dense_patches=dense_patches,
        scale=COLOUR_SCALE,
    )


def _render(template: str, **values: object) -> str:
    environment = html_templates()
    environment.filters["colour"] = css_colour
    return environment.from_string(_MACROS + template).render(values).strip()


def _picture(path: str | None) -> str | None:
    """The thumbnail of an image file as a data URI; None for addresses and for what cannot be read."""
    if path is None or not os.path.isfile(path):
        return None
    try:
        return _thumbnail(read_image(path))
    except GrmpScoreError:  # it may have been deleted or replaced since it was scored
        return None


def _thumbnail(image: Image.Image) -> str:
    return data_uri(jpeg(shrink(image, SIZE)))
