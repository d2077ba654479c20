"""Judging: pairs of answers compared in both orders by an LLM judge, references or people."""
