"""Scores as tables and files: values in, text out, no printing of its own."""
