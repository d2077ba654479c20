"""Bytes as a person reads them."""


def format_bytes(count: float) -> str:
    """`0 bytes`, `12.3 kB`, `538.1 MB`, `1.2 GB`: in powers of a thousand, as disks are sold."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:,.1f} {unit}"
    return f"{count:,.0f} bytes"
