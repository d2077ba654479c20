"""Runs: their provenance, comparison, archives, clean-up and reports."""
