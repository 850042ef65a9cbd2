"""Attribution scorers."""
