"""Dataset filters, one module each."""
