"""llama.cpp's quantiser in a process of its own: `python -m slim.serving.llama_quantize LIBRARY INPUT OUTPUT NUMBER`.

NUMBER is that of a mixture of types (enum llama_ftype).
"""

import ctypes
import sys


class Settings(ctypes.Structure):
    """The first fields of llama_model_quantize_params, and room for the others."""

    _fields_ = (
        ("threads", ctypes.c_int32),
        ("file_type", ctypes.c_int),
        ("output_type", ctypes.c_int),
        ("embedding_type", ctypes.c_int),
        ("allow_requantize", ctypes.c_bool),
        ("others", ctypes.c_byte * 239),
    )


def main(library: str, source: str, output: str, number: str) -> None:
    """Write the GGUF file `output` from `source`, and end with an error where the library fails."""
    llama = ctypes.CDLL(library)
    llama.llama_model_quantize_default_params.restype = Settings
    llama.llama_model_quantize.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.POINTER(Settings))
    llama.llama_model_quantize.restype = ctypes.c_uint32
    settings = llama.llama_model_quantize_default_params()
    settings.file_type, settings.allow_requantize = int(number), True
    if failed := llama.llama_model_quantize(source.encode(), output.encode(), ctypes.byref(settings)):
        sys.exit(f"llama_model_quantize gave {failed}")


if __name__ == "__main__":
    main(*sys.argv[1:])
