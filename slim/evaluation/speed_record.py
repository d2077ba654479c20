"""The records of speed and size that an evaluation holds."""

from pydantic import Field

from slim.core.records import Record


class Timed(Record):
    """A median, and the speed as a multiple of the original's: median, lowest and highest ratio of paired runs."""

    value: float = Field(ge=0)
    times: float = Field(gt=0, description="speed as a multiple of the original's")
    low: float = Field(gt=0)
    high: float = Field(gt=0)

    def words(self, digits: int) -> str:
        """Return the median and its ratio to the original's: "41.2  1.21× [1.15, 1.30]"."""
        return f"{self.value:,.{digits}f}  {self.times:.2f}× [{self.low:.2f}, {self.high:.2f}]"


class Speed(Record):
    """Speed of a model at one batch size."""

    rows: int = Field(ge=1)
    prefill: Timed = Field(description="prompt tokens/s")
    decode: Timed = Field(description="new tokens/s, of all rows together")
    first_token: Timed = Field(description="time to first token: seconds from the prompt's text to the first token's")
    cache_bytes: int = Field(ge=0, description="bytes of keys and values once the last token is decoded")


class Footprint(Record):
    """Space of a model on disk and in memory."""

    file_bytes: int = Field(ge=0, description="bytes of the weights' files")
    load: Timed = Field(description="seconds, with the files in the system's cache")
    peak_bytes: int = Field(ge=0, description="bytes at most, of weights, prefill and decoding of the largest batch")
