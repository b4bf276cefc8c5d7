"""`QualityCLIP`: a CLIP with learned prompts that answers "high quality or low quality?"."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from grmp_score.config import ModelConfig
from grmp_score.errors import ConfigError
from grmp_score.model.architecture import feature_blocks
from grmp_score.model.clip import build_clip
from grmp_score.model.prompts import DeepVisualPrompts, TextPrompt
from grmp_score.model.towers import ImageTower, TextTower


class QualityCLIP(nn.Module):
    """Normalised patches -> quality logits (METHOD section 1).

    The text features of the two quality classes and of the nine scenes are stored in buffers: they do not
    depend on the image.  Training code asks for differentiable ones with `encode_quality` and calls
    `refresh_text` when it is done.

    Attributes:
        config: what the model is.
        clip: the dual encoder; owns the towers' parameters.
        image: V, the image tower with the visual prompts.
        text: g, the text tower.
        text_prompt: learned text context.
        visual_prompts: deep visual prompts, or None.
        text_features: [2, D] stored features of the classes, rows high, low.
        scene_features: [9, D] stored features of the scene prompts.
    """

    text_features: Tensor
    scene_features: Tensor

    def __init__(self, config: ModelConfig, *, unfolded_prompts: bool = False) -> None:
        """Builds the model with random weights.

        Args:
            config: the model's configuration.
            unfolded_prompts: keep the shared linear map of the visual prompts as a parameter (for training
                them from scratch).
        """
        super().__init__()
        self.config = config
        self.clip = build_clip(config.backbone.model_cfg)
        visual = self.clip.visual
        blocks = feature_blocks(config.backbone.model_cfg, len(visual.transformer.resblocks))
        if blocks is not None and config.prompts.n_visual and config.prompts.prompt_norm:
            raise ConfigError("prompt_norm goes with features of the last block alone")
        self.text_prompt = TextPrompt(self.clip, config.prompts)
        self.visual_prompts: DeepVisualPrompts | None = None
        if config.prompts.n_visual:
            self.visual_prompts = DeepVisualPrompts(
                len(visual.transformer.resblocks),
                config.prompts.n_visual,
                visual.class_embedding.shape[0],
                patch_size=visual.patch_size,
                norm=config.prompts.prompt_norm,
                proj=unfolded_prompts,
            )
        self.image = ImageTower(
            visual, self.visual_prompts, adapted_blocks=config.adapted_blocks, feature_blocks=blocks
        )
        self.text = TextTower(self.clip)
        embed_dim = visual.proj.shape[1]
        self.register_buffer("text_features", torch.zeros(2, embed_dim))
        self.register_buffer("scene_features", torch.zeros(len(config.prompts.scenes), embed_dim))
        self.eval()

    def forward(self, patches: Tensor) -> Tensor:
        """Quality logits.

        Args:
            patches: [B, 3, S, S], normalised as ``config.preprocess`` says.

        Returns:
            [B, 2], columns high, low: <g(q), f> / tau (eq. 2), with the stored text features.
        """
        return self.quality_logits(self.image(patches))

    def quality_logits(self, image_features: Tensor, text_features: Tensor | None = None) -> Tensor:
        """Image features [B, D] -> logits [B, 2], columns high, low; by the stored text features unless given."""
        text = self.text_features if text_features is None else text_features  # [2, D]
        scale = self.config.prompts.quality_scale * self.clip.logit_scale.exp()  # 1 / tau
        logits: Tensor = scale * image_features @ text.T
        return logits

    def scene_logits(self, image_features: Tensor, scene_features: Tensor | None = None) -> Tensor:
        """Image features [B, D] -> logits [B, 9] over `PromptConfig.scenes`; as `quality_logits`."""
        text = self.scene_features if scene_features is None else scene_features  # [9, D]
        logits: Tensor = self.clip.logit_scale.exp() * image_features @ text.T
        return logits

    def encode_quality(self) -> Tensor:
        """g(q): text features [2, D] of (high, low) from the current context; differentiable."""
        ids = self.text_prompt.tokens
        return self.text(self.text_prompt(self.text.embed(ids)), ids)

    def encode_scenes(self) -> Tensor:
        """g(w): text features [9, D] of the scene prompts from the current text tower; differentiable."""
        ids = self.text_prompt.scene_tokens
        return self.text(self.text.embed(ids), ids)

    @torch.no_grad()
    def refresh_text(self) -> None:
        """Recomputes the stored text features after the context or the text tower has changed."""
        self.text_features = self.encode_quality().detach().clone()
        self.scene_features = self.encode_scenes().detach().clone()


def p_high(quality_logits: Tensor) -> Tensor:
    """Logits [B, 2] -> p(high | x) [B] in 0..1, higher is better (eq. 2)."""
    return quality_logits.softmax(dim=-1)[:, 0]


def quality_loss(quality_logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy between p(high) and labels (eq. 3), mean over the batch.

    Args:
        quality_logits: [B, 2], columns high, low.
        labels: [B] in 0..1, higher is better.

    Returns:
        Scalar.  Computed from the difference of the logits, so it does not overflow.
    """
    margin = quality_logits[:, 0] - quality_logits[:, 1]
    return nn.functional.binary_cross_entropy_with_logits(margin, labels)
