"""Gin files, found through `importlib.resources` wherever installed."""
