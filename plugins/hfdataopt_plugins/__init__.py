"""The methods that ship with hfdataopt, one module each. They enter by the same entry points as third-party plugins."""
