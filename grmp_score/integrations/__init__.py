"""Scores inside other tools: pandas, DataLoader, Ray."""
