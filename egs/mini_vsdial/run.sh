#!/usr/bin/env bash
# mini_vsdial: the toolkit from nothing on two CPU cores. The recipe makes its own corpus of drawn images and spoken
# Chinese questions about them, trains the CIF ASR model, decodes the test sets and scores them.
#
#   ./run.sh --stop-stage 19       the corpus, the ASR model and its scores
#   ./run.sh --dry-run             what would run, and why
#   ./run.sh --stage 11            from stage 11 on
#
# Decades: 0-9 data, 10-19 CIF ASR, 20-29 language model. A stage that is up to date is skipped. Paths in options count
# from this folder.
# Results: the table at the end and exp/report/metrics.json.
set -euo pipefail

stage=0              # first stage to run
stop_stage=99        # last stage to run
dry_run=false        # only show what would run, and why
force=false          # run the stages of the range even where they are up to date
device=cpu           # cpu or cuda
seed=2023            # seed of the corpus and of the training
nj=2                 # processes side by side
config=conf/asr.yaml # configuration of the CIF ASR model
lm_config=conf/lm.yaml # configuration of the language model
token_kind=char      # char, sentencepiece or mixed
average=5            # how many of the last checkpoints to average
corpus_options=      # more words for local/make_corpus.py, e.g. "--train 600 --test 50"
vision_options=      # more words for local/train_vision.py, e.g. "--steps 100"
lm_options=          # key=value words for the language model's xllm-speech train, e.g. "train.max_steps=500"
train_options=       # key=value words for xllm-speech train, e.g. "train.max_steps=500 optim.lr=1e-3"

# shellcheck source=../../utils/parse_options.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../utils/parse_options.sh"
parse_options "$@"
cd "$(dirname "${BASH_SOURCE[0]}")"
. ../../utils/stages.sh
. ./cmd.sh
if [ "$dry_run" = false ]; then . ./path.sh; fi

test_sets=(mixed clean homophone noisy unseen)
sets=(train dev "${test_sets[@]/#/test_}")
conditions=(S S+V) # speech alone; with the image
data_cuts=() dump_cuts=() test_cuts=() test_texts=() hypotheses=() scores=() results=()
for name in "${sets[@]}"; do
  data_cuts+=("data/$name/cuts.jsonl.gz")
  dump_cuts+=("dump/$name/cuts.jsonl.gz")
done
for name in "${test_sets[@]}"; do
  test_cuts+=("dump/test_$name/cuts.jsonl.gz")
  test_texts+=("data/test_$name/text")
  for condition in "${conditions[@]}"; do
    hypotheses+=("exp/decode/test_$name/$condition.jsonl")
    scores+=("exp/score/test_$name/$condition.json")
    results+=("cif_asr/$name/$condition=exp/score/test_$name/$condition.json")
  done
done

# ---------------------------------------------------------------- 0-9 data

read -r -a corpus_words <<<"$corpus_options"
make_corpus() {
  python3 local/make_corpus.py --out data/corpus --seed "$seed" --jobs "$nj" "${corpus_words[@]}"
}
stage 0 "make the corpus" --with "seed=$seed" "options=$corpus_options" \
  --needs local/{make_corpus,clips,dialogues,drawing,noise,plan,scenes,voices}.py --makes data/corpus/manifest.json -- \
  make_corpus

stage 1 "manifests" --needs data/corpus/manifest.json --makes "${data_cuts[@]}" "${test_texts[@]}" -- \
  xllm-speech prepare visdial --corpus data/corpus --out data

features_of() {
  xllm-speech features --cuts "data/$1/cuts.jsonl.gz" --out "dump/$1"
}
make_features() {
  xllm-speech features --cuts data/train/cuts.jsonl.gz --out dump/train --jobs "$nj" --cmvn dump/cmvn.json
  for_each "$nj" features_of "${sets[@]:1}"
}
stage 2 "features and CMVN" --needs "${data_cuts[@]}" --makes "${dump_cuts[@]}" dump/cmvn.json -- \
  make_features

stage 3 "token table" --needs data/train/cuts.jsonl.gz --makes data/tokens/tokens.txt -- \
  xllm-speech tokens --cuts data/train/cuts.jsonl.gz --kind "$token_kind" --out data/tokens

# ---------------------------------------------------------------- 10-19 CIF ASR

read -r -a vision_words <<<"$vision_options"
stage 10 "train the image encoder, then frozen" --with "seed=$seed" \
  --needs data/corpus/manifest.json local/train_vision.py --makes exp/vision/model.safetensors -- \
  python3 local/train_vision.py --corpus data/corpus --out exp/vision --seed "$seed" "${vision_words[@]}"

read -r -a train_words <<<"$train_options"
mapfile -t configs < <(config_with_bases "$config")
train_asr() {
  run_cmd "$train_cmd" xllm-speech train --config "$config" --out exp/asr \
    "train.device=$device" "train.seed=$seed" "data.seed=$seed" "${train_words[@]}"
}
stage 11 "train the CIF ASR model" --with "device=$device" "seed=$seed" "options=$train_options" \
  --needs "${configs[@]}" exp/vision/model.safetensors dump/train/cuts.jsonl.gz dump/dev/cuts.jsonl.gz dump/cmvn.json data/tokens/tokens.txt \
  --resumes exp/asr --makes exp/asr/final/model.safetensors -- \
  train_asr

stage 12 "average checkpoints" --needs exp/asr/final/model.safetensors --makes exp/asr/average/model.safetensors -- \
  xllm-speech average exp/asr --last "$average" --out exp/asr/average

decode_set() {
  run_cmd "$decode_cmd" xllm-speech transcribe --model exp/asr/average --cuts "dump/test_$1/cuts.jsonl.gz" \
    --device "$device" --no-images --out "exp/decode/test_$1/S.jsonl"
  run_cmd "$decode_cmd" xllm-speech transcribe --model exp/asr/average --cuts "dump/test_$1/cuts.jsonl.gz" \
    --device "$device" --out "exp/decode/test_$1/S+V.jsonl"
}
decode() {
  for_each "$nj" decode_set "${test_sets[@]}"
}
stage 13 "decode the test sets" --with "device=$device" --needs exp/asr/average/model.safetensors "${test_cuts[@]}" \
  --makes "${hypotheses[@]}" -- \
  decode

score_set() {
  local condition
  for condition in "${conditions[@]}"; do
    xllm-speech score --ref "data/test_$1/text" --hyp "exp/decode/test_$1/$condition.jsonl" \
      --set-name "test_$1 $condition" --out "exp/score/test_$1/$condition.json"
  done
}
score() {
  for_each "$nj" score_set "${test_sets[@]}"
}
stage 14 "score" --needs "${test_texts[@]}" "${hypotheses[@]}" --makes "${scores[@]}" -- \
  score

# ---------------------------------------------------------------- 20-29 language model

read -r -a lm_words <<<"$lm_options"
mapfile -t lm_configs < <(config_with_bases "$lm_config")
train_lm() {
  run_cmd "$train_cmd" xllm-speech train --config "$lm_config" --out exp/lm \
    "train.device=$device" "train.seed=$seed" "data.seed=$seed" "${lm_words[@]}"
}
stage 20 "train the language model" --with "device=$device" "seed=$seed" "options=$lm_options" \
  --needs "${lm_configs[@]}" data/corpus/manifest.json --resumes exp/lm --makes exp/lm/final/model.safetensors -- \
  train_lm

end_stages

if [ "$dry_run" = false ]; then
  homophones=()
  for condition in "${conditions[@]}"; do
    score=exp/score/test_homophone/$condition.json
    if [ -e "$score" ]; then homophones+=("cif_asr/$condition=$score"); fi
  done
  python3 ../../local/show_results.py --minutes exp/minutes.tsv --out exp/report/metrics.json "${results[@]}"
  if [ "${#homophones[@]}" -gt 0 ]; then
    python3 local/score_homophones.py --out exp/report/metrics.json "${homophones[@]}"
  fi
fi
