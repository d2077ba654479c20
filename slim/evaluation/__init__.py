"""Evaluation: checkpoints beside their original, in quality, speed and memory, with intervals."""
