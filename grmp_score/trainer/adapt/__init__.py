"""Stage 2: a model fitted to a user's own labels."""
