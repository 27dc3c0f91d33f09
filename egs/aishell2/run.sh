#!/usr/bin/env bash
# aishell2: the speech half of the paper. AISHELL-1 and AISHELL-2 train the CIF ASR model (phase 1) and the speech interface of a
# frozen ChatGLM-6B (phase 2); test-ios, test-android and test-mic are recognised by both and set beside the paper's Table 4.
#
#   ./run.sh --corpus-dir /data/AISHELL-2 --aishell1-dir /data/data_aishell --weights-dir /data/weights
#   ./run.sh --dry-run             the whole plan, and which corpora and weights are missing
#   ./run.sh --stop-stage 19 ...   the CIF ASR model and its scores; needs no weights
#   ./run.sh --stage 65 --demo true   a web page that hears, when everything is trained
#
# Decades: 0-9 data, 10-19 CIF ASR, 20-29 interfaces, 30-39 integration, 40-49 decoding, 50-59 scoring and report, 60-69 demo and
# export.
# A stage that is up to date is skipped. Paths in options count from this folder.
# Results: RESULTS.md, exp/report/metrics.json and exp/report/index.html.
set -euo pipefail

stage=0              # first stage to run
stop_stage=99        # last stage to run
dry_run=false        # only show what would run, and why
force=false          # run the stages of the range even where they are up to date
corpus_dir=downloads/AISHELL-2     # AISHELL-2: the folder with iOS/data, and the development and test sets in it
aishell1_dir=downloads/data_aishell # AISHELL-1, unpacked
weights_dir=weights  # folder with chatglm-6b and bert-base-chinese
device=cuda          # cuda or cpu
gpus=8               # GPUs of a training, the paper's 8 or a divisor; with torchrun or srun: processes in all
nodes=1              # machines of a training that srun starts
nj=8                 # processes of data preparation and parts of a decoding, side by side
seed=1               # seed of the trainings
conf=conf            # folder with asr.yaml and speech.yaml
average=10           # how many of the last checkpoints to average
max_rejected=0.01    # largest share of bad items in a corpus, 0..1
asr_options=         # key=value words for the CIF ASR model's xllm-speech train
xllm_options=        # key=value words for the interface's xllm-speech train
decode_options=      # more words for xllm-speech transcribe of the CIF ASR model, such as "--search beam"
llm_decode_options=  # more words for xllm-speech transcribe of the X-LLM, such as "--beam 4"
export_options=      # more words for xllm-speech export, such as "--without-frozen"
demo=false           # serve the exported model with a web page (stage 65), until Ctrl-C
demo_port=8000       # its port on this machine

# shellcheck source=../../utils/parse_options.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../utils/parse_options.sh"
parse_options "$@"
cd "$(dirname "${BASH_SOURCE[0]}")"
. ../../utils/stages.sh
. ./cmd.sh
. ../../local/big_recipes.sh
if [ "$dry_run" = false ]; then . ./path.sh; fi

corpus=$(absolute "$corpus_dir")
aishell1=$(absolute "$aishell1_dir")
weights=$(absolute "$weights_dir")
check_inputs() { # more options
  python3 ../../local/check_weights.py --stage "$stage" --stop-stage "$stop_stage" "$@" \
    "aishell1@1:--aishell1-dir=$aishell1" "aishell2@1:--corpus-dir=$corpus" \
    "chatglm@21,40,60:--weights-dir=$weights/chatglm-6b" "bert@21:--weights-dir=$weights/bert-base-chinese"
}
if [ "$dry_run" = false ]; then check_inputs; fi

test_sets=(test-ios test-android test-mic)
test_cuts=("${test_sets[@]/#/data/aishell2/}")
test_cuts=("${test_cuts[@]/%//cuts.jsonl.gz}")
hypotheses=("${test_sets[@]/#/exp/decode/}")
llm_hypotheses=("${hypotheses[@]/%//llm_S.jsonl}")
hypotheses=("${hypotheses[@]/%//S.jsonl}")
scores=("${hypotheses[@]/#exp\/decode/exp/score}")
scores=("${scores[@]/%.jsonl/.json}")
llm_scores=("${llm_hypotheses[@]/#exp\/decode/exp/score}")
llm_scores=("${llm_scores[@]/%.jsonl/.json}")
results=()
for name in "${test_sets[@]}"; do
  results+=("cif_asr/$name/S=exp/score/$name/S.json" "llm_asr/$name/S=exp/score/$name/llm_S.json")
done

# ---------------------------------------------------------------- 0-9 data

mapfile -t transcripts < <(existing "$aishell1"/{,data_aishell/}transcript/aishell_transcript_v0.8.txt \
  "$corpus"/{,AISHELL-2/}iOS/data/trans.txt "$corpus"/{,*/,*/*/}{iOS,Android,Mic}/{dev,test}/trans.txt)
prepare() {
  xllm-speech prepare aishell1 --corpus "$aishell1" --out data/aishell1 --jobs "$nj" --max-rejected "$max_rejected"
  xllm-speech prepare aishell2 --corpus "$corpus" --out data/aishell2 --jobs "$nj" --max-rejected "$max_rejected"
}
stage 1 "manifests" --with "corpus=$corpus" "aishell1=$aishell1" "max_rejected=$max_rejected" --needs "${transcripts[@]}" \
  --makes data/aishell1/train/cuts.jsonl.gz data/aishell2/{train,dev-ios}/cuts.jsonl.gz "${test_cuts[@]}" -- \
  prepare

stage 2 "training cuts together" --needs data/aishell{1,2}/train/cuts.jsonl.gz --makes data/train/cuts.jsonl.gz -- \
  join_manifests data/train/cuts.jsonl.gz data/aishell1/train/cuts.jsonl.gz data/aishell2/train/cuts.jsonl.gz

stage 3 "token table" --needs data/train/cuts.jsonl.gz --makes data/tokens/tokens.txt -- \
  xllm-speech tokens --cuts data/train/cuts.jsonl.gz --kind char --out data/tokens

# ---------------------------------------------------------------- 10-19 CIF ASR

read -r -a asr_words <<<"$asr_options"
mapfile -t asr_configs < <(config_with_bases "$conf/asr.yaml")
train_asr() {
  local words
  words=$(gpu_words 8 1)
  # shellcheck disable=SC2086 # words
  run_cmd "$train_cmd" xllm-speech train --config "$conf/asr.yaml" --out exp/asr $words "train.seed=$seed" "data.seed=$seed" \
    "${asr_words[@]}"
}
stage 11 "phase 1: the CIF ASR model" --with "seed=$seed" "options=$asr_options" \
  --needs "${asr_configs[@]}" data/train/cuts.jsonl.gz data/aishell2/dev-ios/cuts.jsonl.gz data/tokens/tokens.txt \
  --resumes exp/asr --makes exp/asr/final/model.safetensors -- \
  train_asr

stage 12 "average checkpoints" --needs exp/asr/final/model.safetensors --makes exp/asr/average/model.safetensors -- \
  xllm-speech average exp/asr --last "$average" --out exp/asr/average

read -r -a decode_words <<<"$decode_options"
sets_to() { # name of the outputs
  local name
  for name in "${test_sets[@]}"; do printf 'data/aishell2/%s/cuts.jsonl.gz=exp/decode/%s/%s\n' "$name" "$name" "$1"; done
}
decode() {
  local -a sets
  mapfile -t sets < <(sets_to S.jsonl)
  transcribe_sets "${sets[@]}" -- --model exp/asr/average "${decode_words[@]}"
}
stage 13 "decode the test sets" --with "options=$decode_options" --needs exp/asr/average/model.safetensors "${test_cuts[@]}" \
  --makes "${hypotheses[@]}" -- \
  decode

score() { # prefix of the hypotheses
  local name
  for name in "${test_sets[@]}"; do
    xllm-speech prepare export-kaldi --cuts "data/aishell2/$name/cuts.jsonl.gz" --out "data/kaldi/$name"
    xllm-speech score --ref "data/kaldi/$name/text" --hyp "exp/decode/$name/$1S.jsonl" --set-name "$name S" \
      --out "exp/score/$name/$1S.json"
  done
}
stage 14 "score" --needs "${test_cuts[@]}" "${hypotheses[@]}" --makes "${scores[@]}" -- \
  score ""

stage 15 "store CIF units" --needs exp/asr/average/model.safetensors data/aishell2/{train,dev-ios}/cuts.jsonl.gz \
  --makes exp/units/units.json -- \
  run_cmd "$decode_cmd" xllm-speech units --model exp/asr/average --cuts data/aishell2/train data/aishell2/dev-ios \
  --out exp/units --device "$device" --jobs "$((nj < 4 ? nj : 4))" --dtype float16 --max-rejected "$max_rejected"

# ---------------------------------------------------------------- 20-29 interfaces

read -r -a xllm_words <<<"$xllm_options"
mapfile -t speech_configs < <(config_with_bases "$conf/speech.yaml")
mapfile -t frozen < <(existing "$weights"/{chatglm-6b,bert-base-chinese})
train_speech() {
  local words
  words=$(gpu_words 8 16)
  # shellcheck disable=SC2086 # words
  run_cmd "$train_cmd" xllm-speech train --config "$conf/speech.yaml" --out exp/xllm/speech $words "train.seed=$seed" \
    "data.seed=$seed" "model.llm.path=$weights/chatglm-6b" "start.bert=$weights/bert-base-chinese" "${xllm_words[@]}"
}
stage 21 "phase 2: the speech interface" --with "seed=$seed" "weights=$weights" "options=$xllm_options" \
  --needs "${speech_configs[@]}" "${frozen[@]}" exp/asr/average/model.safetensors exp/units/units.json \
  data/aishell2/{train,dev-ios}/cuts.jsonl.gz \
  --resumes exp/xllm/speech --makes exp/xllm/speech/final/model.safetensors -- \
  train_speech

# ---------------------------------------------------------------- 40-49 decoding

read -r -a llm_decode_words <<<"$llm_decode_options"
llm_decode() {
  local -a sets
  mapfile -t sets < <(sets_to llm_S.jsonl)
  transcribe_sets "${sets[@]}" -- --method llm --model exp/xllm/speech "${llm_decode_words[@]}"
}
stage 40 "recognise the test sets with the X-LLM" --with "options=$llm_decode_options" \
  --needs exp/xllm/speech/final/model.safetensors exp/asr/average/model.safetensors "${test_cuts[@]}" --makes "${llm_hypotheses[@]}" -- \
  llm_decode

# ---------------------------------------------------------------- 50-59 scoring and report

stage 50 "score the X-LLM's recognition" --needs "${test_cuts[@]}" "${llm_hypotheses[@]}" --makes "${llm_scores[@]}" -- \
  score llm_

show_results() {
  python3 ../../local/show_results.py --minutes exp/minutes.tsv --out exp/report/metrics.json --markdown RESULTS.md \
    --heading "Results of aishell2" "${results[@]}"
  xllm-speech report exp --out exp/report/index.html
}
stage 52 "tables beside the paper's, report" --needs "${scores[@]}" "${llm_scores[@]}" ../../local/show_results.py \
  --makes exp/report/metrics.json exp/report/index.html RESULTS.md -- \
  show_results

# ---------------------------------------------------------------- 60-69 demo and export

stage 60 "export the X-LLM as one folder" --with "options=$export_options" \
  --needs exp/xllm/speech/final/model.safetensors exp/asr/average/model.safetensors "${frozen[@]}" exp/report/metrics.json \
  --makes exp/export/model.safetensors exp/export/README.md -- \
  export_model exp/xllm/speech exp/export "AISHELL-1 and AISHELL-2 (egs/aishell2)."

stage_demo exp/export

end_recipe
