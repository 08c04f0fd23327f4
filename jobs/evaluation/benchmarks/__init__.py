"""Adapters for published benchmarks: their annotation files, prompts, answer rules and metrics, and a run over them."""
