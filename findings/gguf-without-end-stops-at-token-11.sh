#!/usr/bin/env bash
# llama.cpp (xllamacpp 2026.10.11549): a GGUF file that names no end token stops at token 11, an ordinary word.
#
# Guess: without `tokenizer.ggml.eos_token_id` no token ends an answer, so it runs to its limit.
# Seen:  for a byte-pair tokenizer (`tokenizer.ggml.model` is "gpt2") llama.cpp assumes the end of another family, 11.
#        Whenever the model says that token, the answer is over, and the server reports `stop_type` "eos". An id beyond
#        the vocabulary does not help: it is replaced by 11 as well. Naming a token that no text has does.
# Here:  a llama of one layer whose weights are zeros, made to say token 11 by a logit bias. Exits 0 while it is so.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install --quiet xllamacpp==2026.10.11549 gguf==0.19.0 numpy==2.4.6

cat > try.py <<'PY'
import json
import sys
import urllib.request

import numpy as np
import xllamacpp
from gguf import GGUFWriter, TokenType

WORDS, WIDTH, UNUSED = 300, 32, 299
named = json.loads(sys.argv[1])
writer = GGUFWriter("model.gguf", "llama")
writer.add_block_count(1)
writer.add_context_length(64)
writer.add_embedding_length(WIDTH)
writer.add_feed_forward_length(WIDTH)
writer.add_head_count(2)
writer.add_head_count_kv(2)
writer.add_layer_norm_rms_eps(1e-5)
writer.add_rope_dimension_count(WIDTH // 2)
writer.add_vocab_size(WORDS)
writer.add_tokenizer_model("gpt2")
writer.add_tokenizer_pre("gpt-2")
writer.add_token_list([f"w{n}" for n in range(WORDS)])
writer.add_token_types([TokenType.NORMAL] * (WORDS - 1) + [TokenType.UNUSED])
writer.add_token_merges(["w 1"])
if named is not None:
    writer.add_eos_token_id(named)
shapes = {
    "token_embd": (WORDS, WIDTH),
    "output": (WORDS, WIDTH),
    "output_norm": (WIDTH,),
    "blk.0.attn_norm": (WIDTH,),
    "blk.0.ffn_norm": (WIDTH,),
}
parts = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
for name, shape in (shapes | {f"blk.0.{part}": (WIDTH, WIDTH) for part in parts}).items():
    writer.add_tensor(f"{name}.weight", np.zeros(shape, np.float32))
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()

params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel, params.warmup = "model.gguf", 64, 1, False
server = xllamacpp.Server(params)


def says(token):
    body = {"prompt": [5, 6], "n_predict": 3, "temperature": 0, "logit_bias": [[token, 1000]]}
    request = urllib.request.Request(
        server.listening_address + "/completion", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    return json.loads(urllib.request.urlopen(request, timeout=60).read())["stop_type"]


print(says(11), says(12))
PY

for named in null 4294967295 299; do
  found=$(env/bin/python try.py "$named" 2> log.txt | tail -1) || { tail -5 log.txt; exit 3; }
  echo "end token $named: token 11 ends with '${found% *}', token 12 with '${found#* }'"
  case "$named" in
    299) [ "$found" = "limit limit" ] ;;
    *) [ "$found" = "eos limit" ] ;;
  esac
done
