"""Where a pruned model will run: which shapes each runtime takes, and the bytes of each number format.

Both are data, one file each in `runtimes/` or `formats/`.
"""
