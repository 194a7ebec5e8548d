#!/usr/bin/env bash
# The GPU run: random-weight Llama 3.2 shapes through quantlab's calibrate and engine vllm, in order of value.
#     bash benchmarks/gpu/go.sh OUT [STEP ...]     steps: make 3b 1b slm bench deep; all of them without a word
# Every step writes into OUT/<step> as a ledger and its log; a step that was done before is taken from the ledger.
set -u
OUT=$(mkdir -p "${1:?a folder for the results}" && cd "$1" && pwd); shift
HERE=$(cd "$(dirname "$0")" && pwd)
PYTHON=${PYTHON:-python}
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
  for word in 3b 1b; do
    [ -f "$WORK/$word/config.json" ] || "$PYTHON" "$HERE/shapes.py" $word "$WORK/$word"
    quantlab calibrate fp8 fp8_kv8 int4_awq --model "$WORK/$word" --ledger "$OUT/$word" \
      > "$OUT/$word-calibrate.log" 2>&1 || tail -5 "$OUT/$word-calibrate.log"
  done
}
3b() { measure "$OUT/3b" "$WORK/3b" "$HERE/grids/sweep.yaml" fp8 int4_awq fp8_kv8; }
1b() { measure "$OUT/1b" "$WORK/1b" "$HERE/grids/sweep.yaml" fp8 int4_awq fp8_kv8; }
slm() { measure "$OUT/3b" "$WORK/3b" "$HERE/grids/slm.yaml" int4_awq fp8; }
bench() { "$PYTHON" "$HERE/engine_bench.py" "$WORK/3b" --batch 1 --batch 64 --osl 256 > "$OUT/engine_bench.jsonl" 2> "$OUT/engine_bench.log"; }
deep() { # the 90B text path's layers, as many as are quick; the time a layer is the difference of two depths
  for layers in 4 12; do
    [ -f "$WORK/90b-$layers/config.json" ] || "$PYTHON" "$HERE/shapes.py" 90b "$WORK/90b-$layers" --layers $layers
    measure "$OUT/90b-$layers" "$WORK/90b-$layers" "$HERE/grids/max.yaml" fp8
  done
}
for step in "${@:-make 3b 1b slm bench deep}"; do for one in $step; do
  began=$(date +%s); $one; echo "$one: $(( $(date +%s) - began )) s"
done; done
