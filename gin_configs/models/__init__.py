"""Gin files of models; a package, so that one file can include another."""
