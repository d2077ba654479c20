"""A pipeline as one document: one HTML file that needs no network, or a model card in Markdown."""
