"""Photos with class names: reading the list, making views, running the frozen image tower once over them."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from captions import class_scene
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter
from torch import Tensor

from grmp_score.config import IMAGENET_MEAN, IMAGENET_STD, SCENES
from grmp_score.errors import DataError
from grmp_score.model.architecture import feature_blocks
from grmp_score.model.clip import build_clip
from grmp_score.model.towers import ImageTower

NIGHT = SCENES.index("night")
NIGHT_LUMA = 0.20  # mean luma below which a photo counts as night; about half of those looked at truly were
OUTDOOR = ("cityscape", "landscape")


class Photo(NamedTuple):
    """One photo and its class."""

    path: Path
    name: str
    wordnet_id: str


@dataclass(frozen=True)
class PhotoFeatures:
    """What the frozen image tower says about every view of every photo.

    Attributes:
        features: float32 [N, V, F] of `image_tower`. View 0 is the whole photo.
        scenes: bool [N, V, 9], the scenes that are true of a view, in the order of `SCENES`; at least one.
    """

    features: Tensor
    scenes: Tensor


def read_photos(pairs_csv: str | Path) -> list[Photo]:
    """Read a CSV with the columns image (path relative to the file), text (class name) and wordnet_id.

    Raises:
        DataError: a column is missing, the file has no rows, or an id is not a class of ImageNet-1k.
    """
    pairs_csv = Path(pairs_csv)
    with pairs_csv.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = {"image", "text", "wordnet_id"} - set(reader.fieldnames or ())
        if missing:
            raise DataError(f"missing column {', '.join(sorted(missing))}", path=pairs_csv)
        photos = [Photo(pairs_csv.parent / r["image"], r["text"], r["wordnet_id"]) for r in reader]
    if not photos:
        raise DataError("no pairs", path=pairs_csv)
    for photo in photos:
        class_scene(photo.wordnet_id)
    return photos


def is_night(image: Image.Image) -> bool:
    """Whether a photo is so dark (mean luma under 0.20 of white) that it counts as taken at night."""
    return float(np.asarray(image.convert("L"), dtype=np.float32).mean()) / 255 < NIGHT_LUMA


def night_view(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A day photo printed as night: dark, contrasty and blue, only the lights stay bright.

    ImageNet has next to no night photos and no night class, so without these views the word "night" would
    stay untrained. The film industry's "day for night" does the same.
    """
    x = np.asarray(image, dtype=np.float32) / 255
    luma = x.mean(axis=2, keepdims=True)
    x = (0.6 * luma + 0.4 * x) ** rng.uniform(1.8, 2.6) * rng.uniform(0.2, 0.45)
    x = x * np.array([0.75, 0.85, 1.15], dtype=np.float32) + np.clip(luma - 0.9, 0, 1) * rng.uniform(0, 6)
    return Image.fromarray((np.clip(x, 0, 1) * 255).round().astype(np.uint8))


def _nuisance(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """One random mild distortion, so that the meaning of a photo does not hang on its quality."""
    kind = int(rng.integers(5))
    if kind == 0:
        return image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.5, 2.5))))
    if kind == 1:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=int(rng.integers(8, 50)))
        return Image.open(buffer).convert("RGB")
    if kind == 2:
        noise = rng.normal(0, rng.uniform(5, 30), (*image.size[::-1], 3))
        noisy = np.asarray(image, dtype=np.float32) + noise
        return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))
    if kind == 3:
        return ImageEnhance.Brightness(image).enhance(float(rng.uniform(0.6, 1.4)))
    return ImageEnhance.Color(image).enhance(float(rng.uniform(0.0, 1.6)))


def make_view(image: Image.Image, view: int, *, size: int, rng: np.random.Generator) -> Image.Image:
    """View number `view` of a photo: 0 whole, 1 centre crop, then random crops, every other one distorted.

    Returns:
        RGB image of size x size.
    """
    if view == 0:
        return image.resize((size, size), Image.Resampling.BICUBIC)
    width, height = image.size
    if view == 1:
        side = min(width, height) * 0.875
        left, top = (width - side) / 2, (height - side) / 2
    else:
        side = min(width, height) * float(np.sqrt(rng.uniform(0.35, 1.0)))
        left, top = rng.uniform(0, width - side), rng.uniform(0, height - side)
    box = (left, top, left + side, top + side)
    out = image.resize((size, size), Image.Resampling.BICUBIC, box=box)
    if view > 1 and rng.random() < 0.5:
        out = out.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return _nuisance(out, rng) if view > 1 and view % 2 else out


def views_of(
    photo: Photo, index: int, *, views: int, size: int, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """All views of one photo, normalised, and the scenes that are true of each.

    The last of three or more views of an outdoor photo is a `night_view`. The random stream depends on `seed`
    and `index` only, so a photo gets the same views whatever else is in the list.

    Returns:
        float32 [views, 3, size, size], normalised with ImageNet's mean and std; bool [views, 9].
    """
    rng = np.random.default_rng((seed, index))
    with Image.open(photo.path) as file:
        image = file.convert("RGB")
    scene = class_scene(photo.wordnet_id).scene
    pixels = np.empty((views, 3, size, size), np.float32)
    scenes = np.zeros((views, len(SCENES)), np.bool_)
    scenes[:, SCENES.index(scene)] = True
    scenes[:, NIGHT] = is_night(image)
    mean, std = np.array(IMAGENET_MEAN, np.float32), np.array(IMAGENET_STD, np.float32)
    for view in range(views):
        out = make_view(image, view, size=size, rng=rng)
        if view == views - 1 and view >= 2 and scene in OUTDOOR:
            out = night_view(out, rng)
            scenes[view, NIGHT] = True
        rgb = (np.asarray(out, dtype=np.float32) / 255 - mean) / std
        pixels[view] = rgb.transpose(2, 0, 1)
    return pixels, scenes


def image_tower(
    vision_cfg: Mapping[str, Any], vision_state: Mapping[str, Tensor], readout_blocks: Sequence[int]
) -> Callable[[Tensor], Tensor]:
    """The image tower without its projection: normalised images [B, 3, S, S] -> float32 features [B, F].

    F is 2k times the width: CLS and mean token of the k blocks with the numbers ``readout_blocks``, from 1.
    ``ln_post``, which is not fitted yet, normalises without scaling.
    """
    text_cfg = {"context_length": 2, "vocab_size": 2, "width": 8, "heads": 1, "layers": 1}  # built, not used
    cfg = {
        "embed_dim": 8,
        "vision_cfg": dict(vision_cfg),
        "text_cfg": text_cfg,
        "readout_blocks": list(readout_blocks),
    }
    clip = build_clip(cfg).requires_grad_(False)
    state = {k: v for k, v in vision_state.items() if not k.startswith("ln_post.")}
    own = {k: v for k, v in clip.visual.state_dict().items() if k == "proj" or k.startswith("ln_post.")}
    clip.visual.load_state_dict({**own, **state})
    blocks = feature_blocks(cfg, len(clip.visual.transformer.resblocks))
    tower = ImageTower(clip.visual, None, adapted_blocks=1, feature_blocks=blocks)

    @torch.inference_mode()
    def encode(images: Tensor) -> Tensor:
        return tower.pool(tower.trunk(images))

    return encode


def encode_photos(
    encode: Callable[[Tensor], Tensor],
    photos: Sequence[Photo],
    *,
    size: int,
    views: int,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> PhotoFeatures:
    """Runs a frozen image tower over all views of all photos.

    Args:
        encode: as `image_tower` makes it.
        photos: which ones.
        size: side of the views in pixels.
        views: views per photo, at least 1.
        seed: seed of the random views.
        progress: called with (photos done, photos in all) after each photo.
    """
    features, scenes = [], []
    for i, photo in enumerate(photos):
        pixels, truth = views_of(photo, i, views=views, size=size, seed=seed)
        features.append(encode(torch.from_numpy(pixels)).clone())  # [V, F]
        scenes.append(torch.from_numpy(truth))  # [V, 9]
        if progress is not None:
            progress(i + 1, len(photos))
    return PhotoFeatures(torch.stack(features).clone(), torch.stack(scenes))
