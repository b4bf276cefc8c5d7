"""How much the kept activations save: one training pass of stage 2, cached and by the straightforward loop.

    python benchmarks/adapt_step.py                        # ViT-B/16, 100 images x 10 crops; takes long
    python benchmarks/adapt_step.py --images 2 --crops 4

Both passes take the same steps on the same crops, with random weights, in turns, so that a machine that becomes
slower or faster meanwhile does so for both.  The straightforward loop runs open_clip's blocks as they are: the
whole image tower twice, once for each loss, the teacher's image tower, and the text tower over all 77 positions.
The cached one is what `grmp_score.trainer` runs: the last blocks once, and the text tower to the last end-of-text
token.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from open_clip import transformer
from torch import Tensor

from grmp_score.config import Backbone, ModelConfig, PromptConfig
from grmp_score.model.clip import architecture
from grmp_score.model.quality_clip import QualityCLIP, quality_loss
from grmp_score.trainer.adapt.config import FewShotConfig, Precision
from grmp_score.trainer.adapt.features import Activations, computing, native_precision
from grmp_score.trainer.adapt.folds import all_rows
from grmp_score.trainer.adapt.gradient_descent import CHUNK, GradientDescent
from grmp_score.trainer.adapt.optimizer import stages_of
from grmp_score.trainer.adapt.parameters import trained_names, values_of
from grmp_score.trainer.adapt.qgr import project, semantic_loss
from grmp_score.trainer.data.labels import Labels

ARCHITECTURE = "ViT-B-16-quickgelu"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--crops", type=int, default=10, help="per image, all used in the pass")
    parser.add_argument("--batch-size", type=int, default=16, help="images per step")
    parser.add_argument("--visual-prompts", type=int, default=8, help="per block")
    parser.add_argument("--precision", choices=["auto", "float32", "bfloat16"], default="auto")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    device = torch.device(options.device)
    precision: Precision = native_precision(device) if options.precision == "auto" else options.precision

    torch.manual_seed(0)
    clip = Backbone(model_cfg=architecture(ARCHITECTURE), name=ARCHITECTURE)
    prompted = ModelConfig("random", clip, PromptConfig(n_visual=options.visual_prompts))
    model = QualityCLIP(prompted).to(device).requires_grad_(False)
    teacher = QualityCLIP(ModelConfig("random teacher", clip)).to(device).requires_grad_(False)
    config = FewShotConfig(
        train="blocks",
        epochs=1,
        head_first=False,
        warm_up_epochs=0,
        batch_size=options.batch_size,
        crops_per_step=options.crops,
        optimizer="sgd",
    )
    patches = torch.randn(options.images, options.crops, 3, 224, 224)

    kept: list[Activations] = []
    once = seconds(lambda: kept.append(prepare(model, teacher, patches, precision)), device)
    (activations,) = kept
    plain_model, plain_teacher = with_own_activation(copy.deepcopy(model)), with_own_activation(teacher)
    trainings = [make_training(m, activations, config, precision) for m in (plain_model, model)]
    loops = (straightforward_steps(trainings[0], plain_teacher, patches), trainings[1].run())
    steps: list[tuple[Seconds, Seconds]] = []
    for number in range(1, trainings[1].steps_per_epoch + 1):
        plain, cached = (seconds(lambda loop=loop: next(loop), device) for loop in loops)
        steps.append((plain, cached))
        total = trainings[1].steps_per_epoch
        say = f"step {number} of {total}: {plain.wall:.1f} s and {cached.wall:.1f} s by the clock"
        print(say, file=sys.stderr, flush=True)
    plain, cached = (Seconds(sum(s.wall for s in c), sum(s.processor for s in c)) for c in zip(*steps, strict=True))
    ratios = sorted(a.processor / b.processor for a, b in steps)
    print(f"{ARCHITECTURE}, {options.images} images x {options.crops} crops, {precision} on {device}")
    print("                        by the clock    of processor time")
    print(f"straightforward pass  {plain.wall:12.2f} s  {plain.processor:12.2f} s")
    print(f"cached pass           {cached.wall:12.2f} s  {cached.processor:12.2f} s")
    print(f"ratio                 {plain.wall / cached.wall:12.2f}    {plain.processor / cached.processor:12.2f}")
    print(f"over the steps                          {ratios[0]:12.2f} .. {ratios[-1]:.2f}")
    print(f"making the cache      {once.wall:12.2f} s  {once.processor:12.2f} s, once for all epochs and folds")


@dataclass(frozen=True)
class Seconds:
    """How long something took; processor time does not count what other programs did meanwhile."""

    wall: float
    processor: float


def seconds(run: Callable[[], object], device: torch.device) -> Seconds:
    """Time that a call takes, work queued on a GPU included."""
    wall, processor = time.perf_counter(), time.process_time()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return Seconds(time.perf_counter() - wall, time.process_time() - processor)


@torch.no_grad()
def prepare(model: QualityCLIP, teacher: QualityCLIP, patches: Tensor, precision: Precision) -> Activations:
    """What `compute_activations` keeps of images that are read."""
    device = model.text_features.device
    tokens, features, scenes = [], [], []
    teacher.refresh_text()
    for crops in patches.to(device):
        with computing(device, precision):
            entering = model.image.trunk(crops)
            tokens.append(entering.cpu().half())
            features.append(model.image.head(entering).float().cpu())
            semantic = teacher.image(crops).float()
        scenes.append(teacher.scene_logits(semantic).softmax(-1).cpu())
    return Activations(torch.stack(tokens), torch.stack(features), torch.stack(scenes), patches.shape[1])


def make_training(
    model: QualityCLIP, activations: Activations, config: FewShotConfig, precision: Precision
) -> GradientDescent:
    """One pass over all images, whose labels are spread evenly."""
    n = len(activations.features)
    labels = Labels(Path(), tuple(Path(str(i)) for i in range(n)), tuple(range(n)), np.linspace(0, 1, n))
    start = values_of(model, trained_names(model, config))
    stages = stages_of(model, config)
    return GradientDescent(model, start, activations, all_rows(labels), stages, config, precision=precision)


def straightforward_steps(training: GradientDescent, teacher: QualityCLIP, patches: Tensor) -> Iterator[None]:
    """The same steps from the pixels, a forward and a backward pass for each loss; yields after each."""
    model, device, config = training.model, training.device, training.config
    (stage,) = training.stages
    named = dict(model.named_parameters())
    parameters = [named[n] for n in stage.names]
    optimizer = torch.optim.SGD(parameters, lr=config.learning_rate, momentum=config.momentum)
    for step in range(training.steps_per_epoch):
        images, crops = training.batch(stage, step)
        images, crops = images.repeat_interleave(crops.shape[1]), crops.flatten()
        sums: list[dict[str, Tensor]] = [{}, {}]
        for part in torch.split(torch.arange(len(images)), CHUNK):
            x = patches[images[part], crops[part]].to(device)
            for k in range(2):
                with computing(device, training.precision):
                    features = whole_image(model, x).float()
                    text = quality_text(model) if k == 0 else scene_text(model)
                if k == 0:
                    labels = training.targets[images[part]].to(device)
                    loss = quality_loss(model.quality_logits(features, text), labels)
                else:
                    with torch.no_grad(), computing(device, training.precision):
                        original = whole_image(teacher, x).float()
                    p_sem = teacher.scene_logits(original).softmax(-1)
                    loss = semantic_loss(model.scene_logits(features, text), p_sem)
                gradients = torch.autograd.grad(len(part) / len(images) * loss, parameters, allow_unused=True)
                for name, g in zip(stage.names, gradients, strict=True):
                    if g is not None:
                        sums[k][name] = sums[k][name] + g if name in sums[k] else g
        projected, *_ = project(sums[0], sums[1], config.qgr_lambda)
        for name, parameter in zip(stage.names, parameters, strict=True):
            parameter.grad = projected[name]
        optimizer.step()
        yield


def with_own_activation(model: QualityCLIP) -> QualityCLIP:
    """The model with open_clip's QuickGELU in its blocks, not ours."""
    for block in [*model.clip.visual.transformer.resblocks, *model.clip.transformer.resblocks]:
        block.mlp.gelu = transformer.QuickGELU()
    return model


def whole_image(model: QualityCLIP, patches: Tensor) -> Tensor:
    """Patches [B, 3, S, S] -> features [B, D], all of open_clip's blocks on all tokens."""
    visual = model.clip.visual
    prompts = None if model.visual_prompts is None else model.visual_prompts()
    tokens = model.image.embed(patches)
    for i, block in enumerate(visual.transformer.resblocks):
        if prompts is None:
            tokens = block(tokens)
        else:
            n, prompt = prompts.shape[1], prompts[i].expand(len(tokens), -1, -1)
            out = block(torch.cat([tokens[:, :1], prompt, tokens[:, 1:]], dim=1))
            tokens = torch.cat([out[:, :1], out[:, 1 + n :]], dim=1)
    return torch.nn.functional.normalize(visual.ln_post(tokens[:, 0]) @ visual.proj, dim=-1)


def quality_text(model: QualityCLIP) -> Tensor:
    """Text features of the two classes, over all positions of the context."""
    prompt = model.text_prompt
    x = model.text.embed(prompt.tokens)
    x = torch.cat([x[:, :1], prompt.ctx.expand(len(x), -1, -1), x[:, 1 + len(prompt.ctx) :]], dim=1)
    return whole_text(model, x, prompt.tokens)


def scene_text(model: QualityCLIP) -> Tensor:
    """Text features of the nine scenes, over all positions of the context."""
    tokens = model.text_prompt.scene_tokens
    return whole_text(model, model.text.embed(tokens), tokens)


def whole_text(model: QualityCLIP, embedded: Tensor, tokens: Tensor) -> Tensor:
    """Embeddings [C, 77, W] -> features [C, D]."""
    clip = model.clip
    x = clip.transformer(embedded + clip.positional_embedding, attn_mask=clip.attn_mask)
    x = clip.ln_final(x[torch.arange(len(x)), tokens.argmax(dim=-1)]) @ clip.text_projection
    return torch.nn.functional.normalize(x.float(), dim=-1)


if __name__ == "__main__":
    main()
