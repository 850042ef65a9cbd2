"""hfdataopt."""
