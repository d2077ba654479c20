"""One number format a file; each is found by itself."""
