"""Text generators, one module each."""
