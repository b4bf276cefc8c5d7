"""One picture that says why an image has its score: its patches, and a heat map of quality, side by side."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from grmp_score.display import colour, colours, ink_on
from grmp_score.errors import GrmpScoreError
from grmp_score.files import replacing
from grmp_score.images.read import read_image

if TYPE_CHECKING:
    from grmp_score.explain import Explanation, PatchValue
    from grmp_score.scorer import Scorer

#: Sides of the two panels, in pixels; small images are enlarged to the lower bound.
_PANEL, _LEAST_PANEL, _LEAST_COLUMN = 800, 640, 420
_MARGIN, _GAP = 32, 24
_PAPER, _INK, _FAINT = (255, 255, 255), (20, 20, 20), (95, 95, 95)

#: Share of the map's colours in the right panel; the rest is the photo in grey.
_HEAT_SHARE = 0.55

#: Width of an outline with its dark rim, and the distance of outlines that would lie on each other.
_LINE, _STEP = 5, 7

Box = tuple[float, float, float, float]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def write_explanation(scorer: Scorer, path: str | os.PathLike[str], folder: str | Path) -> Path:
    """Explains the score of an image file as a picture in a folder.

    Args:
        scorer: what scores it.
        path: image file.
        folder: made if it does not exist.

    Returns:
        The JPEG that was written: `explanation_name` of the path.  It appears complete or not at all.

    Raises:
        ImageReadError: the image cannot be read.
        GrmpScoreError: the picture cannot be written.
    """
    name = os.fspath(path)
    image = read_image(name, background=scorer.background, max_pixels=scorer.max_pixels)
    picture = draw_explanation(image, scorer.explain(image), title=os.path.basename(name), model=scorer.config.name)
    target = Path(folder) / explanation_name(name)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as temporary:
            picture.save(temporary, "JPEG", quality=88, subsampling=0)
    except OSError as error:
        raise GrmpScoreError(f"cannot write the explanation: {error.strerror or error}", path=target) from error
    return target


def explanation_name(path: str) -> str:
    """A file name for the explanation of an image: the image's own name as far as it is plain, and a checksum of
    its absolute path, so that two images never share one and no name leads out of the folder."""
    # Windows knows no bytes that are not text, elsewhere they come back as they were.
    digest = hashlib.sha256(os.fsencode(os.path.abspath(path))).hexdigest()[:12]
    stem = re.sub(r"[^A-Za-z0-9_-]+", "_", os.path.splitext(os.path.basename(path))[0])[:60].strip("_-")
    return f"{stem or 'image'}-{digest}.jpg"


def draw_explanation(image: Image.Image, explanation: Explanation, *, title: str, model: str) -> Image.Image:
    """Draws the picture: on the left the photo with its patches, on the right the heat map over the photo.

    Args:
        image: upright 8-bit RGB, the one that was explained.
        explanation: its explanation.
        title: what it is called.
        model: name of the weights.

    Returns:
        RGB image, at most 1700 pixels wide; panels of panoramas lie above each other.
    """
    width, height = _panel_size(*image.size)
    photo = image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)
    stacked = width > 2 * height
    # Captions and legend need their room whatever the photo's shape.
    column = max(width, _LEAST_COLUMN)
    columns, rows = (1, 2) if stacked else (2, 1)
    text = column * columns + _GAP * (columns - 1)
    top, caption, legend = 2 * _MARGIN + 54, 64, 96
    picture = Image.new("RGB", (text + 2 * _MARGIN, top + rows * (height + caption) + legend), _PAPER)
    draw = ImageDraw.Draw(picture)
    score = explanation.score
    large, normal, small = (ImageFont.load_default(size) for size in (30, 20, 16))
    spread = "" if score.standard_error is None else f" ± {score.standard_error:.3f}"
    value = f"{score.value:.3f}{spread}"
    room = text - draw.textlength(value, large) - _GAP
    draw.text((_MARGIN, _MARGIN), _fitting(draw, drawable(title), large, room), _INK, large)
    draw.text((_MARGIN + text, _MARGIN), value, _INK, large, anchor="ra")
    line = f"{score.width} x {score.height} pixels, model {drawable(model)}"
    draw.text((_MARGIN, _MARGIN + 42), _fitting(draw, line, small, text), _FAINT, small)
    heat, patches = explanation.heat, explanation.patches
    dashed = any(_is_dashed(patch, patches) for patch in patches)
    captions = (
        (
            _patch_panel(photo, patches, (width / image.width, height / image.height)),
            f"{len(patches)} patches; the score is their mean",
            "Dashed: cut from a smaller version, so it covers more." if dashed else "",
        ),
        (
            _heat_panel(photo, explanation),
            f"Quality over the image: {heat.min():.2f} to {heat.max():.2f}",
            f"From {explanation.dense_patches} patches on a regular grid.",
        ),
    )
    for number, (panel, first, second) in enumerate(captions):
        x = _MARGIN + (0 if stacked else number * (column + _GAP))
        y = top + (number * (height + caption) if stacked else 0)
        picture.paste(panel, (x + (column - width) // 2, y))
        draw.text((x, y + height + 8), _fitting(draw, first, normal, column), _INK, normal)
        draw.text((x, y + height + 34), _fitting(draw, second, small, column), _FAINT, small)
    _legend(picture, (_MARGIN, picture.height - legend + 20, text), score.value, small)
    return picture


def drawable(text: str) -> str:
    """Text in letters that Pillow's own font has, which are few: accents are dropped, other letters become "?"."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return "".join(c if c.isascii() and c.isprintable() else "?" for c in plain)


def _panel_size(width: int, height: int) -> tuple[int, int]:
    longest = max(width, height)
    factor = min(_PANEL, max(_LEAST_PANEL, longest)) / longest
    if width > 2 * height:  # the panels lie above each other and may be wider
        factor *= 1.6
    return max(1, round(width * factor)), max(1, round(height * factor))


def _patch_panel(photo: Image.Image, patches: tuple[PatchValue, ...], ratio: tuple[float, float]) -> Image.Image:
    """The photo with outlines and values; patches whose borders coincide are drawn side by side, not over each
    other."""
    panel = photo.copy()
    draw = ImageDraw.Draw(panel)
    boxes = [(p.box[0] * ratio[0], p.box[1] * ratio[1], p.box[2] * ratio[0], p.box[3] * ratio[1]) for p in patches]
    insets = _insets(boxes, panel.size)
    for patch, box, inset in zip(patches, boxes, insets, strict=True):
        inner = (box[0] + inset, box[1] + inset, box[2] - inset - 1, box[3] - inset - 1)
        _outline(draw, inner, colour(patch.p_high), dashed=_is_dashed(patch, patches))
    font = ImageFont.load_default(18)
    taken: list[Box] = []
    for patch, box, inset in zip(patches, boxes, insets, strict=True):
        label = _free_place(box, inset, panel.size, taken)
        if label is None:
            continue  # hundreds of patches: the colours remain
        taken.append(label)
        fill = colour(patch.p_high)
        draw.rounded_rectangle(label, 4, fill=fill, outline=ink_on(fill))
        middle = ((label[0] + label[2]) / 2, (label[1] + label[3]) / 2)
        draw.text(middle, f"{patch.p_high:.2f}", ink_on(fill), font, anchor="mm")
    return panel


def _is_dashed(patch: PatchValue, patches: tuple[PatchValue, ...]) -> bool:
    return patch.scale < max(p.scale for p in patches)


def _insets(boxes: list[Box], size: tuple[int, int]) -> list[int]:
    """How far each outline moves inwards so that no two share a side; fewer than five steps."""
    drawn: list[tuple[int, float, float, float]] = []
    insets = []
    for box in boxes:
        for inset in range(_LINE // 2, _LINE // 2 + 5 * _STEP, _STEP):
            sides = _sides(box, inset)
            if not any(_coincide(side, other) for side in sides for other in drawn):
                break
        drawn += sides
        insets.append(inset)
    return insets


def _sides(box: Box, inset: float) -> list[tuple[int, float, float, float]]:
    """The four sides as (axis, position, from, to)."""
    left, top, right, bottom = box[0] + inset, box[1] + inset, box[2] - inset, box[3] - inset
    return [(0, left, top, bottom), (0, right, top, bottom), (1, top, left, right), (1, bottom, left, right)]


def _coincide(one: tuple[int, float, float, float], other: tuple[int, float, float, float]) -> bool:
    return (
        one[0] == other[0] and abs(one[1] - other[1]) < _STEP - 1 and min(one[3], other[3]) > max(one[2], other[2])
    )


def _outline(draw: ImageDraw.ImageDraw, box: Box, fill: tuple[int, int, int], *, dashed: bool) -> None:
    for axis, position, start, end in _sides(box, 0):
        cuts = np.arange(start, end, 18) if dashed else np.array([start])
        for at in cuts:
            stop = min(end, at + 11) if dashed else end
            line = [(position, at), (position, stop)] if axis == 0 else [(at, position), (stop, position)]
            draw.line(line, (0, 0, 0), _LINE)
            draw.line(line, fill, _LINE - 2)


def _free_place(box: Box, inset: float, size: tuple[int, int], taken: list[Box]) -> Box | None:
    """Room for a number on the outline, top side first, where no other number is."""
    width, height = 48, 24
    left, top, right, bottom = box[0] + inset, box[1] + inset, box[2] - inset, box[3] - inset
    across = [left + (right - left - width) * f for f in (0.5, 0.3, 0.7, 0.15, 0.85)]
    down = [top + (bottom - top - height) * f for f in (0.5, 0.3, 0.7, 0.15, 0.85)]
    places = [(x, top) for x in across] + [(left, y) for y in down]
    places += [(x, bottom - height) for x in across] + [(right - width, y) for y in down]
    for x, y in places:
        x, y = min(max(2, x), size[0] - width - 2), min(max(2, y), size[1] - height - 2)
        label = (x, y, x + width, y + height)
        if not any(_overlap(label, other) for other in taken):
            return label
    return None


def _overlap(one: Box, other: Box, gap: float = 3) -> bool:
    """Whether two boxes come nearer to each other than a gap."""
    return (
        one[0] < other[2] + gap and other[0] < one[2] + gap and one[1] < other[3] + gap and other[1] < one[3] + gap
    )


def _heat_panel(photo: Image.Image, explanation: Explanation) -> Image.Image:
    """The map over the photo in grey, so that no colour of the photo is taken for one of the map."""
    heat = Image.fromarray(explanation.heat).resize(photo.size, Image.Resampling.BICUBIC)
    over = Image.fromarray(colours(np.asarray(heat)))
    bright = ImageOps.grayscale(photo).point([70 + v * 185 // 255 for v in range(256)])
    return Image.blend(bright.convert("RGB"), over, _HEAT_SHARE)


def _legend(picture: Image.Image, place: tuple[int, int, int], score: float, font: Font) -> None:
    """The scale of colours with the image's score marked; ``place`` is left, top, width."""
    draw = ImageDraw.Draw(picture)
    left, top, room = place
    before, after = "bad 0", "1 good"
    start = left + round(draw.textlength(before, font)) + 12
    width = min(520, room - (start - left) - round(draw.textlength(after, font)) - 12)
    ramp = np.tile(colours(np.linspace(0, 1, width)), (22, 1, 1))
    picture.paste(Image.fromarray(ramp), (start, top))
    draw.text((start - 12, top + 11), before, _INK, font, anchor="rm")
    draw.text((start + width + 12, top + 11), after, _INK, font, anchor="lm")
    mark = start + score * (width - 1)
    draw.polygon([(mark, top + 16), (mark - 7, top + 30), (mark + 7, top + 30)], _INK, (255, 255, 255))
    draw.text((mark, top + 34), f"score {score:.2f}", _INK, font, anchor="ma")
    note = "p(high quality) of a patch"
    end = start + width + 12 + draw.textlength(after, font) + 24
    if end + draw.textlength(note, font) <= left + room:
        draw.text((end, top + 11), note, _FAINT, font, anchor="lm")


def _fitting(draw: ImageDraw.ImageDraw, text: str, font: Font, room: float) -> str:
    """The text, its middle left out if it is wider than the room."""
    shown, kept = text, len(text)
    while kept > 2 and draw.textlength(shown, font) > room:
        kept -= 1
        shown = f"{text[: (kept + 1) // 2]}…{text[len(text) - kept // 2 :]}"
    return shown
