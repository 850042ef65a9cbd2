"""Versions of the packages that numbers come from, without importing them."""

from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("hfdataopt", "torch", "transformers", "datasets", "trl", "accelerate", "numpy")


def installed() -> dict[str, str]:
    """``{package: version}`` of those that are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
