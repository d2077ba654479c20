"""The dashboard's pages, a file each, and their parts (`views`)."""
