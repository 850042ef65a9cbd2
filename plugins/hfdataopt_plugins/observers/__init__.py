"""Plugins that listen: they register no component."""
