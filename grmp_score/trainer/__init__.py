"""Training: stage 1 (meta-prompt pre-training) and what it needs.

Nothing here is imported for scoring.
"""
