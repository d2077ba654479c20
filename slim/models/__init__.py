"""Models: families, loading, tokenizers, probes of every head and block, and the units that can be removed."""
