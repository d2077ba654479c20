"""Serving: GGUF files, an OpenAI-compatible server, and pushes to a model Hub."""
