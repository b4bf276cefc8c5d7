"""Scores images with an ONNX file of `grmp-score export`; needs onnxruntime, NumPy and Pillow, not grmp_score.

python examples/score_with_onnx.py mini.onnx photo.jpg ...
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image

model, *files = sys.argv[1:]
session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
cut = json.loads(session.get_modelmeta().custom_metadata_map["preprocess"])
mean, std, side = np.float32(cut["mean"]), np.float32(cut["std"]), cut["patch_size"]
for file in files:
    image = Image.open(file).convert("RGB")
    scale = min(1.0, (cut["size"] or np.inf) / min(image.size))
    image = image.resize([max(side, round(length * scale)) for length in image.size], Image.Resampling.BICUBIC)
    # A 3x3 grid over the middle; the package's own places are in grmp_score/model/patches.py.
    at = [np.linspace(0.25, 0.75, 3) * (length - side) for length in image.size]
    patches = [np.asarray(image.crop((int(x), int(y), int(x) + side, int(y) + side))) for y in at[1] for x in at[0]]
    values = (np.stack(patches).astype(np.float32) / 255 - mean) / std  # [9, S, S, 3]
    p_high = session.run(["p_high"], {"patches": values.transpose(0, 3, 1, 2)})[0]
    print(f"{p_high.mean():.3f}  {file}")
