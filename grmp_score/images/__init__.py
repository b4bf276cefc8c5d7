"""Any source that holds a picture -> an upright 8-bit sRGB image."""

from grmp_score.images.colour import parse_colour
from grmp_score.images.read import MAX_PIXELS, ImageSource, image_bytes, read_image, source_name

__all__ = ["MAX_PIXELS", "ImageSource", "image_bytes", "parse_colour", "read_image", "source_name"]
