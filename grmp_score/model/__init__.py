"""The paper's model: normalised patches -> p(high quality)."""
