"""Numbers as text: bytes for a reader, and floats in the fewest digits that read back as the same number."""


def format_bytes(count: float) -> str:
    """Return `0 bytes`, `12.3 kB`, `538.1 MB` or `1.2 GB`: in powers of a thousand, as disks are sold."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:,.1f} {unit}"
    return f"{count:,.0f} bytes"


def number_text(value: float) -> str:
    """Return the shortest text that reads back as the same number: `1`, `0.25`, `0.0003`."""
    text = f"{value:g}"
    return text if float(text) == value else repr(value)
