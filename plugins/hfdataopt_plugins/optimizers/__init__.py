"""Prompt optimizers: one module each."""
