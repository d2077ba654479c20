"""Pruning: execute a plan in memory and write a checkpoint that stock transformers loads."""
