"""One runtime a file; each is found by itself."""
