"""`QualityCLIP`: a CLIP with learned prompts that answers "high quality or low quality?"."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from grmp_score.config import SCENES, ModelConfig
from grmp_score.errors import ConfigError
from grmp_score.model import towers as backbone
from grmp_score.model.prompts import DeepVisualPrompts, TextPrompt


class QualityCLIP(nn.Module):
    """Normalised patches -> quality logits (METHOD section 1).

    The text features of the two quality classes and of the nine scenes are stored in buffers: they do not
    depend on the image.  Training code asks for differentiable ones with `encode_quality` and calls
    `refresh_text` when it is done.

    Attributes:
        config: what the model is.
        readout_blocks: number of last image blocks that the features are made of.
        clip: the dual encoder (open_clip).
        text_prompt: learned text context.
        visual_prompts: deep visual prompts, or None.
        text_features: [2, D] stored features of the classes, columns high, low.
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
        self.clip = backbone.build_clip(config.backbone.model_cfg)
        self.readout_blocks = backbone.readout_blocks(config.backbone.model_cfg)
        if self.readout_blocks > 1 and self.readout_blocks > config.adapted_blocks:
            raise ConfigError(
                f"the features are read out of {self.readout_blocks} blocks, of which only {config.adapted_blocks} "
                "lie above the frozen trunk"
            )
        if self.readout_blocks > 1 and config.prompts.n_visual and config.prompts.prompt_norm:
            raise ConfigError("prompt_norm goes with features of the last block alone")
        self.text_prompt = TextPrompt(self.clip, config.prompts, SCENES)
        visual = self.clip.visual
        self.visual_prompts: DeepVisualPrompts | None = None
        if config.prompts.n_visual:
            self.visual_prompts = DeepVisualPrompts(
                backbone.image_depth(self.clip),
                config.prompts.n_visual,
                visual.class_embedding.shape[0],
                patch_size=visual.patch_size[0],
                norm=config.prompts.prompt_norm,
                proj=unfolded_prompts,
            )
        embed_dim = visual.proj.shape[1]
        self.register_buffer("text_features", torch.zeros(2, embed_dim))
        self.register_buffer("scene_features", torch.zeros(len(SCENES), embed_dim))
        self.eval()

    def forward(self, patches: Tensor) -> Tensor:
        """Quality logits.

        Args:
            patches: [B, 3, S, S], normalised as ``config.preprocess`` says.

        Returns:
            [B, 2], columns high, low: <g(q), f> / tau (eq. 2), with the stored text features.
        """
        return self.quality_logits(self.encode_image(patches))

    # -------------------------------------------------------------- image side

    @property
    def trunk_depth(self) -> int:
        """Number of image-tower blocks in the frozen trunk."""
        return max(0, backbone.image_depth(self.clip) - self.config.adapted_blocks)

    def image_trunk(self, patches: Tensor) -> Tensor:
        """Patches [B, 3, S, S] -> tokens [B, 1 + N, W] that enter the first adapted block."""
        tokens = backbone.embed_image(self.clip, patches)
        return backbone.run_image_blocks(self.clip, tokens, self._visual_tokens(), 0, self.trunk_depth)

    def image_head(self, tokens: Tensor) -> Tensor:
        """Tokens from `image_trunk` -> L2-normalised image features [B, D]."""
        return self.image_projection(self.image_pooled(tokens))

    def image_pooled(self, tokens: Tensor) -> Tensor:
        """Tokens from `image_trunk` -> pooled features [B, F] as ``ln_post`` gives them, before the projection."""
        return backbone.read_out(
            self.clip,
            tokens,
            self._visual_tokens(),
            start=self.trunk_depth,
            blocks=self.readout_blocks,
            norm=None if self.visual_prompts is None else self.visual_prompts.norm,
            project=False,
        )

    def image_projection(self, pooled: Tensor) -> Tensor:
        """Pooled features [B, F] -> L2-normalised image features [B, D]."""
        return nn.functional.normalize(pooled @ self.clip.visual.proj, dim=-1)

    def encode_image(self, patches: Tensor) -> Tensor:
        """Patches [B, 3, S, S] -> L2-normalised image features [B, D]."""
        return self.image_head(self.image_trunk(patches))

    def _visual_tokens(self) -> Tensor | None:
        return None if self.visual_prompts is None else self.visual_prompts()

    # --------------------------------------------------------------- text side

    def encode_quality(self) -> Tensor:
        """Text features [2, D] of (high, low) from the current context; differentiable."""
        return self.text_prompt.quality_features(self.clip)

    def encode_scenes(self) -> Tensor:
        """Text features [9, D] of the scene prompts from the current text tower; differentiable."""
        return self.text_prompt.scene_features(self.clip)

    @torch.no_grad()
    def refresh_text(self) -> None:
        """Recomputes the stored text features after the context or the text tower has changed."""
        self.text_features = self.encode_quality().detach().clone()
        self.scene_features = self.encode_scenes().detach().clone()

    # ------------------------------------------------------------------ logits

    def quality_logits(self, image_features: Tensor, text_features: Tensor | None = None) -> Tensor:
        """Image features [B, D] -> logits [B, 2], columns high, low."""
        text = self.text_features if text_features is None else text_features
        scale = self.config.prompts.quality_scale * self.clip.logit_scale.exp()
        logits: Tensor = scale * image_features @ text.T
        return logits

    def scene_logits(self, image_features: Tensor, scene_features: Tensor | None = None) -> Tensor:
        """Image features [B, D] -> logits [B, 9] over `grmp_score.config.SCENES`."""
        text = self.scene_features if scene_features is None else scene_features
        logits: Tensor = self.clip.logit_scale.exp() * image_features @ text.T
        return logits


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
