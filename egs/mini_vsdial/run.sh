#!/usr/bin/env bash
# mini_vsdial: the toolkit from nothing on two CPU cores. The recipe makes its own corpus of drawn images, short clips and
# spoken Chinese questions about them, trains the CIF ASR model (phase 1), a small language model, the three interfaces
# (phase 2) and their adapters together (phase 3), decodes the test sets and scores them.
#
#   ./run.sh                       all of it
#   ./run.sh --stop-stage 19       the corpus, the ASR model and its scores
#   ./run.sh --dry-run             what would run, and why
#   ./run.sh --stage 11            from stage 11 on
#
# Decades: 0-9 data, 10-19 CIF ASR, 20-29 language model and interfaces, 30-39 integration, 40-49 decoding, 50-59 scoring,
# 60-69 demo and export.
# A stage that is up to date is skipped. Paths in options count from this folder.
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
train_options=       # key=value words for the CIF ASR model's xllm-speech train, e.g. "train.max_steps=500 optim.lr=1e-3"
xllm_options=        # key=value words for xllm-speech train of the interfaces and of the integration
condition_options=   # more words for xllm-speech conditions (stage 53), e.g. "--limit 50"
judge_url=           # OpenAI-compatible endpoint that judges answers (stage 55); empty: they are not judged
judge_model=gpt-4    # its model

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
models=(cif_asr llm_asr)
clips=(data/{train,dev,test}_clips/conversations.jsonl.gz)
answers=(exp/answers/{all,no_image,no_speech,video,no_video}.jsonl)
data_cuts=() dump_cuts=() test_cuts=() test_texts=() talks=() hypotheses=() scores=() results=()
llm_hypotheses=() llm_scores=()
for name in "${sets[@]}"; do
  data_cuts+=("data/$name/cuts.jsonl.gz")
  dump_cuts+=("dump/$name/cuts.jsonl.gz")
  talks+=("data/$name/conversations.jsonl.gz")
done
for name in "${test_sets[@]}"; do
  test_cuts+=("dump/test_$name/cuts.jsonl.gz")
  test_texts+=("data/test_$name/text")
  for condition in "${conditions[@]}"; do
    hypotheses+=("exp/decode/test_$name/$condition.jsonl")
    scores+=("exp/score/test_$name/$condition.json")
    results+=("cif_asr/$name/$condition=exp/score/test_$name/$condition.json")
    llm_hypotheses+=("exp/decode/test_$name/llm_$condition.jsonl")
    llm_scores+=("exp/score/test_$name/llm_$condition.json")
    results+=("llm_asr/$name/$condition=exp/score/test_$name/llm_$condition.json")
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

stage 1 "manifests" --needs data/corpus/manifest.json --makes "${data_cuts[@]}" "${test_texts[@]}" "${talks[@]}" -- \
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

stage 4 "manifests of clips" --needs data/corpus/manifest.json local/make_clip_manifests.py --makes "${clips[@]}" -- \
  python3 local/make_clip_manifests.py --corpus data/corpus --out data

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

stage 15 "store CIF units" --with "device=$device" --needs exp/asr/average/model.safetensors "${dump_cuts[@]}" \
  --makes exp/units/units.json -- \
  xllm-speech units --model exp/asr/average --cuts dump/train dump/dev --out exp/units --device "$device" --jobs "$nj"

# ---------------------------------------------------------------- 20-29 language model and interfaces

read -r -a lm_words <<<"$lm_options"
mapfile -t lm_configs < <(config_with_bases "$lm_config")
train_lm() {
  # So small a model gains nothing from a second thread, but from a second process.
  local where=$train_cmd
  if [ "$where $device" = "local cpu" ] && [ "$nj" -gt 1 ]; then where="torchrun $nj"; fi
  run_cmd "$where" xllm-speech train --config "$lm_config" --out exp/lm \
    "train.device=$device" "train.seed=$seed" "data.seed=$seed" "${lm_words[@]}"
}
stage 20 "train the language model, then frozen" --with "device=$device" "seed=$seed" "options=$lm_options" "processes=$nj" \
  --needs "${lm_configs[@]}" data/corpus/manifest.json --resumes exp/lm --makes exp/lm/final/model.safetensors -- \
  train_lm

read -r -a xllm_words <<<"$xllm_options"
train_xllm() { # image, speech, video or integrate
  run_cmd "$train_cmd" xllm-speech train --config "conf/$1.yaml" --out "exp/xllm/$1" \
    "train.device=$device" "train.seed=$seed" "data.seed=$seed" "${xllm_words[@]}"
}
frozen=(exp/lm/final/model.safetensors exp/vision/model.safetensors exp/asr/average/model.safetensors)
mapfile -t image_configs < <(config_with_bases conf/image.yaml)
mapfile -t speech_configs < <(config_with_bases conf/speech.yaml)
align() {
  for_each "$nj" train_xllm image speech
}
stage 21 "phase 2: image and speech interfaces, side by side" --with "device=$device" "seed=$seed" "options=$xllm_options" \
  --needs "${frozen[@]}" "${image_configs[@]}" "${speech_configs[@]}" exp/units/units.json "${data_cuts[@]:0:2}" "${talks[@]:0:2}" \
  --resumes exp/xllm/image exp/xllm/speech \
  --makes exp/xllm/image/final/model.safetensors exp/xllm/speech/final/model.safetensors -- \
  align

mapfile -t video_configs < <(config_with_bases conf/video.yaml)
stage 22 "phase 2: video interface, from the image interface" --with "device=$device" "seed=$seed" "options=$xllm_options" \
  --needs "${frozen[@]}" "${video_configs[@]}" exp/xllm/image/final/model.safetensors "${clips[@]:0:2}" \
  --resumes exp/xllm/video --makes exp/xllm/video/final/model.safetensors -- \
  train_xllm video

# ---------------------------------------------------------------- 30-39 integration

mapfile -t integrate_configs < <(config_with_bases conf/integrate.yaml)
interfaces=(exp/xllm/{image,speech,video}/final/model.safetensors)
stage 30 "phase 3: the adapters together" --with "device=$device" "seed=$seed" "options=$xllm_options" \
  --needs "${frozen[@]}" "${integrate_configs[@]}" "${interfaces[@]}" "${data_cuts[@]:0:2}" "${talks[@]:0:2}" "${clips[@]:0:2}" \
  --resumes exp/xllm/integrate --makes exp/xllm/integrate/final/model.safetensors -- \
  train_xllm integrate

# ---------------------------------------------------------------- 40-49 decoding

llm_decode_set() {
  run_cmd "$decode_cmd" xllm-speech transcribe --method llm --model exp/xllm/integrate --cuts "dump/test_$1/cuts.jsonl.gz" \
    --device "$device" --threads 1 --no-images --out "exp/decode/test_$1/llm_S.jsonl"
  run_cmd "$decode_cmd" xllm-speech transcribe --method llm --model exp/xllm/integrate --cuts "dump/test_$1/cuts.jsonl.gz" \
    --device "$device" --threads 1 --out "exp/decode/test_$1/llm_S+V.jsonl"
}
llm_decode() {
  for_each "$nj" llm_decode_set "${test_sets[@]}"
}
stage 40 "recognise the test sets with the X-LLM" --with "device=$device" \
  --needs exp/xllm/integrate/final/model.safetensors "${interfaces[@]}" "${frozen[@]}" "${test_cuts[@]}" --makes "${llm_hypotheses[@]}" -- \
  llm_decode

answer() { # set, tasks, name of the output, kinds of media to leave out
  local -a without=()
  local kind
  for kind in "${@:4}"; do without+=(--without "$kind"); done
  run_cmd "$decode_cmd" xllm-speech answer --model exp/xllm/integrate --conversations "data/$1/conversations.jsonl.gz" \
    --device "$device" --threads 1 --tasks "$2" --max-tokens 64 "${without[@]}" --out "exp/answers/$3.jsonl"
}
answer_one() {
  case $1 in
    all) answer test_mixed caption,vl,vsd all ;;
    no_image) answer test_mixed vl,vsd no_image image ;;
    no_speech) answer test_mixed vsd no_speech speech ;;
    video) answer test_clips video,vl video ;;
    no_video) answer test_clips vl no_video video ;;
  esac
}
answer_all() {
  for_each "$nj" answer_one all no_image no_speech video no_video
}
stage 41 "answer questions about pictures and clips, with and without them" --with "device=$device" \
  --needs exp/xllm/integrate/final/model.safetensors "${interfaces[@]}" "${frozen[@]}" data/test_mixed/conversations.jsonl.gz \
  data/test_clips/conversations.jsonl.gz --makes "${answers[@]}" -- \
  answer_all

# ---------------------------------------------------------------- 50-59 scoring

llm_score_set() {
  local condition
  for condition in "${conditions[@]}"; do
    xllm-speech score --ref "data/test_$1/text" --hyp "exp/decode/test_$1/llm_$condition.jsonl" \
      --set-name "test_$1 $condition" --out "exp/score/test_$1/llm_$condition.json"
  done
}
llm_score() {
  for_each "$nj" llm_score_set "${test_sets[@]}"
}
stage 50 "score the X-LLM's recognition" --needs "${test_texts[@]}" "${llm_hypotheses[@]}" --makes "${llm_scores[@]}" -- \
  llm_score

stage 51 "score the answers" --needs "${answers[@]}" ../../local/score_answers.py --makes exp/score/answers.json -- \
  python3 ../../local/score_answers.py --out exp/score/answers.json \
  image/caption_cer=exp/answers/all.jsonl#caption \
  image/question_accuracy=exp/answers/all.jsonl#vl image/blind_accuracy=exp/answers/no_image.jsonl#vl \
  spoken_question/accuracy=exp/answers/all.jsonl#vsd spoken_question/no_image=exp/answers/no_image.jsonl#vsd \
  spoken_question/no_speech=exp/answers/no_speech.jsonl#vsd video/caption_cer=exp/answers/video.jsonl#video \
  video/direction_accuracy=exp/answers/video.jsonl#vl video/blind_accuracy=exp/answers/no_video.jsonl#vl \
  video/chance=chance:exp/answers/video.jsonl#vl

show_table() {
  local -a homophones=()
  local model condition name score
  for model in "${models[@]}"; do
    for condition in "${conditions[@]}"; do
      name=$condition
      if [ "$model" = llm_asr ]; then name=llm_$condition; fi
      score=exp/score/test_homophone/$name.json
      if [ -e "$score" ]; then homophones+=("$model/$condition=$score"); fi
    done
  done
  if [ "${#homophones[@]}" -gt 0 ]; then
    python3 local/score_homophones.py --out exp/report/metrics.json "${homophones[@]}"
  fi
  python3 ../../local/show_results.py --minutes exp/minutes.tsv --out exp/report/metrics.json --answers exp/score/answers.json \
    "${results[@]}"
}
stage 52 "gather the numbers" --needs "${scores[@]}" "${llm_scores[@]}" exp/score/answers.json local/score_homophones.py \
  ../../local/show_results.py --makes exp/report/metrics.json -- \
  show_table

read -r -a condition_words <<<"$condition_options"
compare_conditions() { # cif_asr or llm_asr
  local -a how=(--model exp/asr/average)
  if [ "$1" = llm_asr ]; then how=(--method llm --model exp/xllm/integrate --wordings); fi
  run_cmd "$decode_cmd" xllm-speech conditions "${how[@]}" --cuts dump/test_homophone/cuts.jsonl.gz --device "$device" \
    --threads 1 --seed "$seed" --set-name test_homophone --out "exp/conditions/$1" "${condition_words[@]}"
}
compare_all_conditions() {
  for_each "$nj" compare_conditions "${models[@]}"
}
compared=(exp/conditions/{cif_asr,llm_asr}/conditions.json exp/conditions/llm_asr/wordings.json)
stage 53 "does the image help: right, wrong and grey images, captions, wordings" --with "device=$device" "seed=$seed" \
  "options=$condition_options" \
  --needs exp/xllm/integrate/final/model.safetensors "${interfaces[@]}" "${frozen[@]}" dump/test_homophone/cuts.jsonl.gz \
  --makes "${compared[@]}" -- \
  compare_all_conditions

compare_answers() { # kind, task, name, answers, what they are held against
  xllm-speech score --metrics "$1" --task "$2" --set-name "$3" --answers "exp/answers/$4.jsonl" \
    --out "exp/score/texts/${3// /_}.json" "${@:5}"
}
compare_all_answers() {
  compare_answers caption caption "image descriptions" all
  compare_answers caption video "clip descriptions" video
  compare_answers answer vl "typed questions" all --compare exp/answers/no_image.jsonl
  compare_answers answer vsd "spoken questions" all --compare exp/answers/no_image.jsonl
  compare_answers answer vl "clip questions" video --compare exp/answers/no_video.jsonl
}
text_scores=(exp/score/texts/{image_descriptions,clip_descriptions,typed_questions,spoken_questions,clip_questions}.json)
stage 54 "descriptions and answers beside their references" --needs "${answers[@]}" --makes "${text_scores[@]}" -- \
  compare_all_answers

judged=()
judge() {
  local set=exp/judge
  python3 local/judge_questions.py --answers exp/answers/all.jsonl --conversations data/test_mixed/conversations.jsonl.gz --out "$set"
  xllm-speech judge run --questions "$set/questions.jsonl" --answers "$set/answers.jsonl" --reference "$set/reference.jsonl" \
    --contexts "$set/contexts.jsonl" --url "$judge_url" --model "$judge_model" --out "$set/verdicts.jsonl"
  xllm-speech judge summarize "$set/verdicts.jsonl" --json >"$set/summary.json.part"
  mv "$set/summary.json.part" "$set/summary.json"
}
if [ -n "$judge_url" ]; then
  judged=(exp/judge/summary.json)
  stage 55 "have answers judged" --with "judge=$judge_model" --needs exp/answers/all.jsonl \
    data/test_mixed/conversations.jsonl.gz local/judge_questions.py --resumes exp/judge --makes "${judged[@]}" -- \
    judge
else
  printf 'stage 55: answers are not judged: no --judge-url names an OpenAI-compatible endpoint\n' >&2
fi

stage 59 "report" --needs "${scores[@]}" "${llm_scores[@]}" exp/score/answers.json exp/xllm/integrate/final/model.safetensors \
  "${compared[@]}" "${text_scores[@]}" "${judged[@]}" --makes exp/report/index.html exp/report/RESULTS.md -- \
  xllm-speech report exp --markdown exp/report/RESULTS.md

# ---------------------------------------------------------------- 60-69 demo and export

stage 60 "export the X-LLM as one folder" --needs "${frozen[@]}" "${interfaces[@]}" exp/xllm/integrate/final/model.safetensors \
  "${scores[@]}" "${llm_scores[@]}" exp/score/answers.json --makes exp/export/model.safetensors exp/export/README.md -- \
  xllm-speech export --model exp/xllm/integrate --out exp/export --scores exp/report/metrics.json \
  --data "Drawn pictures, short clips and synthetic speech (egs/mini_vsdial)."

end_stages

if [ "$dry_run" = false ]; then show_table; fi
