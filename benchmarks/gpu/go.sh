#!/usr/bin/env bash
# The GPU run: random-weight Llama 3.2 shapes through quantlab's calibrate and engine vllm, in order of value.
#     bash benchmarks/gpu/go.sh OUT [STEP ...]     all steps without a word; choose the GPU with CUDA_VISIBLE_DEVICES
# Steps: make 3b 1b slm flight bench parity profile served encoder deep deep2 spread (deep: 70 GB of disk in WORK and a GPU of 141 GB; deep2 and spread: two).
# Every step writes into OUT/<step> as a ledger and its log; a step that was done before is taken from the ledger.
set -u
OUT=$(mkdir -p "${1:?a folder for the results}" && cd "$1" && pwd); shift
HERE=$(cd "$(dirname "$0")" && pwd)
PYTHON=${PYTHON:-python}
export PYTHONPATH="$(cd "$HERE/../.." && pwd)${PYTHONPATH:+:$PYTHONPATH}"
export VLLM_USE_FLASHINFER_SAMPLER=0 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
WORK=${WORK:-$OUT/models}
mkdir -p "$WORK"

quantlab() { (cd "$HERE/../.." && "$PYTHON" -m quantlab "$@"); }
measure() { # ledger model grid recipes...
  local ledger=$1 model=$2 grid=$3; shift 3
  quantlab run "$@" --model "$model" --engine vllm --stage calibrate --stage throughput --grid "$grid" \
    --ledger "$ledger" > "$ledger-$(basename "$grid" .yaml).log" 2>&1 || tail -5 "$ledger-$(basename "$grid" .yaml).log"
}
make() {
  for word in ${MODELS:-3b 1b}; do
    [ -f "$WORK/$word/config.json" ] || "$PYTHON" "$HERE/shapes.py" $word "$WORK/$word"
  done
}
3b() { measure "$OUT/3b" "$WORK/3b" "$HERE/grids/sweep.yaml" fp8 int4_awq fp8_kv8; }
1b() { measure "$OUT/1b" "$WORK/1b" "$HERE/grids/sweep.yaml" fp8 int4_awq fp8_kv8; }
slm() { measure "$OUT/3b" "$WORK/3b" "$HERE/grids/slm.yaml" int4_awq fp8; }
flight() { measure "$OUT/3b" "$WORK/3b" "$HERE/grids/flight.yaml" fp8 int4_awq fp8_kv8; }
bench() { "$PYTHON" "$HERE/engine_bench.py" "$WORK/3b" --batch 1 --batch 64 --osl 256 > "$OUT/engine_bench.jsonl" 2> "$OUT/engine_bench.log"; }
parity() { "$PYTHON" "$HERE/parity.py" "$(dirname "$(grep -l '"FP8"' "$OUT"/3b/checkpoints/*/hf_quant_config.json | head -1)")" > "$OUT/parity.json" 2> "$OUT/parity.log"; }
exports() { # folders of the 3b step's exports in ModelOpt's words: FP8, W4A16_AWQ; those with a quantized cache left out
  local found
  for found in "$OUT"/3b/checkpoints/*/hf_quant_config.json; do
    grep -q "\"quant_algo\": *\"$1\"" "$found" && ! grep -q '"kv_cache_quant_algo": *"' "$found" && dirname "$found"
  done | head -1
}
profile() { # where a decode step's time goes, batch 1
  "$PYTHON" "$HERE/decode_profile.py" "$OUT/profile.json" "$WORK/3b" $(exports FP8) $(exports W4A16_AWQ) --batch 1 \
    > "$OUT/profile.txt" 2> "$OUT/profile.log" || tail -5 "$OUT/profile.log"; cat "$OUT/profile.txt"
}
served() { # the FP8 export with its tied head in vLLM's own server
  "$PYTHON" "$HERE/served.py" "$(exports FP8)" --log "$OUT/served" > "$OUT/served.json" 2> "$OUT/served.log" || tail -5 "$OUT/served.log"
  cat "$OUT/served.json"
}
encoder() { "$PYTHON" "$HERE/encoder.py" > "$OUT/encoder.jsonl" 2> "$OUT/encoder.log" || tail -3 "$OUT/encoder.log"; }
deep() { # the 90B text path, all 80 layers, in FP8; its largest grids fill the rest of the memory with keys and values
  [ -f "$WORK/90b/config.json" ] || "$PYTHON" "$HERE/deep.py" make "$WORK/90b"
  "$PYTHON" "$HERE/deep.py" bench "$WORK/90b" "$OUT/90b" --grid "$HERE/grids/max.yaml" --grid "$HERE/grids/max2000.yaml" \
    --grid "$HERE/grids/max4000.yaml" > "$OUT/90b.log" 2>&1 || tail -5 "$OUT/90b.log"
}
deep2() { # the same on two GPUs: what the communication costs
  "$PYTHON" "$HERE/deep.py" bench "$WORK/90b" "$OUT/90b-tp2" --tp 2 --grid "$HERE/grids/max.yaml" > "$OUT/90b-tp2.log" 2>&1 || tail -5 "$OUT/90b-tp2.log"
}
spread() { "$PYTHON" "$HERE/spread.py" "$WORK/3b" "$OUT/spread.json" > "$OUT/spread.log" 2>&1 || tail -5 "$OUT/spread.log"; }
for step in "${@:-make 3b 1b slm flight bench parity profile served encoder deep}"; do for one in $step; do
  began=$(date +%s); $one; echo "$one: $(( $(date +%s) - began )) s"
done; done
