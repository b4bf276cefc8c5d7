"""Stage 1: prompts meta-learned over distortion types."""
