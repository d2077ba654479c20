"""Foundations of every stage: frozen records and requests, errors, the workspace, caches, statistics, documents."""
