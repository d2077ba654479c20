"""Slim: shrink a language model for your task, and know the cost before you cut."""

__version__ = "0.1.0"
