"""Footage that we render ourselves, and what is trained on it. Importing the package starts and loads nothing."""
