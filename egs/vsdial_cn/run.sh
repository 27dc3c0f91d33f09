#!/usr/bin/env bash
# vsdial_cn: the whole paper. Builds VSDial-CN from VisDial, prepares the corpora of pictures and clips, trains the CIF ASR model
# (phase 1), the image, speech and video interfaces of a frozen ChatGLM-6B (phase 2) and their adapters together (phase 3),
# recognises speech with and without pictures (Table 4) and answers LLaVA-test (Table 1).
#
#   ./run.sh --visdial-dir ... --coco-dir ... --weights-dir ...   options for every corpus: --help
#   ./run.sh --dry-run             the whole plan, and which corpora and weights are missing
#   ./run.sh --pictures 4M         the ablation "w/ 4M": all pictures but Wukong; with --init false "w/ 4M no init"
#   ./run.sh --asr-sees ""         the CIF ASR model that only hears
#   ./run.sh --parallel 2          trainings that need not wait for one another run side by side
#   ./run.sh --stage 65 --demo true   a web page to talk with the model, when everything is trained
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
visdial_dir=downloads/visdial             # visdial_1.0_*.json and the pictures of VisDial's val and test sets
coco_dir=downloads/coco                   # COCO 2014: annotations, train2014, val2014
aishell1_dir=downloads/data_aishell       # AISHELL-1, unpacked
aishell2_dir=downloads/AISHELL-2          # AISHELL-2 with its development and test sets
flickr30k_dir=downloads/flickr30k         # results_20130124.token, flickr30k-images
aic_dir=downloads/aic                     # AI Challenger captions
visual_genome_dir=downloads/visual_genome # region_descriptions.json, image_data.json, VG_100K, VG_100K_2
cc3m_dir=downloads/cc3m                   # Train_GCC-training.tsv, images
sbu_dir=downloads/sbu                     # SBU_captioned_photo_dataset_urls.txt and _captions.txt, images
wukong_dir=downloads/wukong               # wukong_100m_*.csv, images
msrvtt_dir=downloads/msrvtt               # train_val_videodatainfo.json, videos
activitynet_dir=downloads/activitynet     # train.json, videos
minigpt4_dir=downloads/cc_sbu_align       # filter_cap.json, image
llava_dir=downloads/llava_test            # LLaVA-test: questions, answers of GPT-4, contexts, rules
weights_dir=weights  # folder of the weights; --dry-run names what it must hold
picture_corpora=     # corpora of pictures, such as "coco aic"; empty: all that --pictures stands for
pictures=14M         # 14M, or 4M: without Wukong
init=true            # the Q-Former starts from BLIP-2; false: from chance
asr_sees=image,caption # what the CIF ASR model sees beside hearing: image, caption, both or nothing
min_score=0.45       # of CLIP, for pairs of Wukong; 0.475 with Chinese-CLIP
translate_options=   # back-end of xllm-speech prepare translate, such as "--table FILE"; empty: mBART-50
speech_options=      # voice of xllm-speech prepare synthesise, such as "--espeak"; empty: the espnet2 model
speech_command=      # or any program that speaks: its line with {text} and {out}
recogniser=          # a CIF ASR model (../aishell2/exp/asr/average) that drops what it does not understand of the synthesis
round_trip=true      # the recipe's own CIF ASR model does so too, before phase 2 (stage 16)
max_cer=0.3          # largest share of characters that they may get wrong
max_dropped=0.5      # largest share of the recordings that they may drop, 0..1
test_speech=         # folder with speech.jsonl of people who speak the questions of the test sets; empty: synthesis
test_art=            # questions of test-art, jsonl of {"image_id", "question"}; empty: no test-art
test_count=2000      # questions of test-orig
device=cuda          # cuda or cpu
gpus=8               # GPUs of a training, the paper's 8 or a divisor; with torchrun or srun: processes in all
nodes=1              # machines of a training that srun starts
nj=8                 # processes of data preparation and parts of a decoding, side by side
parallel=1           # trainings side by side: 2 begins the image interface with the CIF ASR model and goes on with it
seed=1               # seed of corpus and trainings
conf=conf            # folder with asr.yaml, image.yaml, video.yaml, speech.yaml and integrate.yaml
average=10           # how many of the last checkpoints to average
max_rejected=0.05    # largest share of bad items in a corpus, 0..1; questions that were dropped are among them
asr_options=         # key=value words for the CIF ASR model's xllm-speech train
xllm_options=        # key=value words for xllm-speech train of the interfaces and of the integration
condition_options=   # more words for xllm-speech conditions (stage 53), such as "--limit 500"
llm_decode_options=  # more words for the X-LLM's recognition and answers, such as "--max-tokens 100"
judge_url=           # OpenAI-compatible endpoint of the judge; empty: answers are not judged
judge_model=gpt-4    # its model
judge_translate_options= # back-end that translates the answers for it; empty: as --translate-options
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
. local/pictures.sh
if [ "$dry_run" = false ]; then . ./path.sh; fi

# ---------------------------------------------------------------- options, and what is there

tag=""
case $pictures in
  14M) picture_batches=3500000 picture_steps=130719 ;; # conf/image_paper.yaml tells how these come about
  4M) picture_batches=1000000 picture_steps=33063 tag=_4M ;;
  *) stage_die "--pictures is 14M or 4M, not \`$pictures\`" 2 ;;
esac
if [ "$init" = false ]; then tag+=_no_init; fi
if [ -n "$tag" ]; then
  # An ablation has its own records, so that neither it nor the whole model begins anew after the other; what comes before the
  # interfaces is the same for both.
  stage_dir=exp/.stages$tag
  if [ -d exp/.stages ] && [ ! -d "$stage_dir" ]; then
    if [ "$dry_run" = true ]; then # which leaves nothing behind
      stage_dir=$(mktemp -d)
      trap 'rm -rf "$stage_dir"' EXIT
    fi
    mkdir -p "$stage_dir"
    for name in 0 1 2 3 4 6 11 12 13 14 15 16; do
      if [ -e "exp/.stages/$name" ]; then cp "exp/.stages/$name" "exp/.stages/$name.began" "$stage_dir"; fi
    done
  fi
fi
read -r -a corpora <<<"${picture_corpora:-coco flickr30k aic visual-genome cc3m sbu wukong}"
if [ "$pictures" = 4M ]; then
  chosen=()
  for name in "${corpora[@]}"; do if [ "$name" != wukong ]; then chosen+=("$name"); fi; done
  corpora=("${chosen[@]}")
fi
case $asr_sees in
  "") conditions=(S) ;;
  image) conditions=(S S+V) ;;
  caption) conditions=(S S+L) ;;
  image,caption) conditions=(S S+V S+V+L) ;;
  *) stage_die "--asr-sees is image, caption, image,caption or empty, not \`$asr_sees\`" 2 ;;
esac

visdial=$(absolute "$visdial_dir") coco=$(absolute "$coco_dir") aishell1=$(absolute "$aishell1_dir")
aishell2=$(absolute "$aishell2_dir") flickr30k=$(absolute "$flickr30k_dir") aic=$(absolute "$aic_dir")
visual_genome=$(absolute "$visual_genome_dir") cc3m=$(absolute "$cc3m_dir") sbu=$(absolute "$sbu_dir")
wukong=$(absolute "$wukong_dir") msrvtt=$(absolute "$msrvtt_dir") activitynet=$(absolute "$activitynet_dir")
minigpt4=$(absolute "$minigpt4_dir") llava=$(absolute "$llava_dir") weights=$(absolute "$weights_dir")
test_speech=$(absolute "$test_speech") test_art=$(absolute "$test_art") recogniser=$(absolute "$recogniser")
glm=$weights/chatglm-6b bert=$weights/bert-base-chinese clip=$weights/clip-vit-base-patch16 similarity=$clip
blip2=$weights/blip2_pretrained_opt6.7b.pth eva=$weights/eva_vit_g.pth
read -r -a translate_words <<<"${translate_options:---mbart $weights/mbart-large-50-many-to-many-mmt --device $device}"
read -r -a speech_words <<<"${speech_options:---espnet $weights/aishell3_tts}"
if [ -n "$speech_command" ]; then speech_words=(--command "$speech_command"); fi
read -r -a judge_translate_words <<<"$judge_translate_options"
if [ "${#judge_translate_words[@]}" -eq 0 ]; then judge_translate_words=("${translate_words[@]}"); fi

inputs=("visdial@0-1:--visdial-dir=$visdial" "coco@1,5,41:--coco-dir=$coco" "aishell1@1:--aishell1-dir=$aishell1"
  "aishell2@1:--aishell2-dir=$aishell2" "msrvtt@4:--msrvtt-dir=$msrvtt" "activitynet@4:--activitynet-dir=$activitynet"
  "minigpt4@5:--minigpt4-dir=$minigpt4" "llava@41,51:--llava-dir=$llava" "chatglm@21,22,30,40,41,53,60:--weights-dir=$glm"
  "bert@11,13,16,21,53,60:--weights-dir=$bert" "eva@20:--weights-dir=$eva")
for name in "${corpora[@]}"; do
  place=${name//-/_}
  if [ "$name" != coco ]; then inputs+=("$name@5:--${name}-dir=${!place-}"); fi
  if [ "$name" = wukong ]; then inputs+=("similarity@5:--weights-dir=$similarity"); fi
done
if [[ $asr_sees == *image* ]]; then inputs+=("clip@11,13,16,53,60:--weights-dir=$clip"); fi
if [ "$init" = true ]; then inputs+=("blip2@20:--weights-dir=$blip2"); fi
if [ -z "$translate_options" ]; then
  judging=
  if [ -n "$judge_url" ] && [ -z "$judge_translate_options" ]; then judging=,51; fi
  inputs+=("mbart@0,4,5$judging:--weights-dir=${translate_words[1]}")
fi
if [ -z "$speech_options$speech_command" ]; then inputs+=("tts@0:--weights-dir=${speech_words[1]}"); fi
check_inputs() { # more options
  python3 ../../local/check_weights.py --stage "$stage" --stop-stage "$stop_stage" "$@" "${inputs[@]}"
}
if [ "$dry_run" = false ]; then check_inputs; fi

heard_sets=(test-ios test-android test-mic) # speech alone
seen_sets=(test-orig)                       # speech with a picture and its caption
if [ -n "$test_art" ]; then seen_sets+=(test-art); fi
cuts_of() {
  case $1 in
    test-orig | test-art) printf 'data/vsdial/%s/cuts.jsonl.gz\n' "$1" ;;
    *) printf 'data/aishell2/%s/cuts.jsonl.gz\n' "$1" ;;
  esac
}
test_cuts=() hypotheses=() scores=() llm_hypotheses=() llm_scores=() results=()
add_condition() { # set, condition, models
  if [[ $3 == *cif* ]]; then
    hypotheses+=("exp/decode/$1/$2.jsonl")
    scores+=("exp/score/$1/$2.json")
    results+=("cif_asr/$1/$2=exp/score/$1/$2.json")
  fi
  if [[ $3 == *llm* ]]; then
    llm_hypotheses+=("exp/decode/$1/llm${tag}_$2.jsonl")
    llm_scores+=("exp/score/$1/llm${tag}_$2.json")
    results+=("llm_asr$tag/$1/$2=exp/score/$1/llm${tag}_$2.json")
  fi
}
for name in "${heard_sets[@]}"; do
  test_cuts+=("$(cuts_of "$name")")
  add_condition "$name" S "cif llm"
done
for name in "${seen_sets[@]}"; do
  test_cuts+=("$(cuts_of "$name")")
  for condition in "${conditions[@]}"; do add_condition "$name" "$condition" cif; done
  for condition in S S+V; do add_condition "$name" "$condition" llm; done
done

# ---------------------------------------------------------------- 0-9 data

visdial_files=("$visdial"/visdial_1.0_{train,val,test}.json)
mapfile -t visdial_there < <(existing "${visdial_files[@]}")
make_corpus() {
  xllm-speech prepare visdial-texts --annotations "${visdial_files[@]}" --out data/visdial --max-rejected "$max_rejected"
  translate data/visdial/texts.jsonl data/visdial/translations.jsonl
  xllm-speech prepare synthesise --input data/visdial/translations.jsonl --texts data/visdial/texts.jsonl --out data/speech_all \
    --seed "$seed" --jobs "$nj" --max-rejected "$max_rejected" "${speech_words[@]}"
  rm -rf data/speech
  if [ -z "$recogniser" ]; then
    ln -s speech_all data/speech
    return
  fi
  xllm-speech prepare speech-cuts --speech data/speech_all --out data/speech_all/cuts.jsonl.gz
  transcribe data/speech_all/cuts.jsonl.gz data/speech_all/heard.jsonl --model "$recogniser" --no-images --no-captions
  xllm-speech prepare round-trip --speech data/speech_all --heard data/speech_all/heard.jsonl --max-cer "$max_cer" \
    --max-dropped "$max_dropped" --out data/speech
}
stage 0 "make VSDial-CN: translate, speak, filter" \
  --with "visdial=$visdial" "translate=${translate_words[*]}" "speech=${speech_words[*]}" "seed=$seed" "recogniser=$recogniser" \
  "max_cer=$max_cer" "max_dropped=$max_dropped" "max_rejected=$max_rejected" --needs "${visdial_there[@]}" \
  --makes data/visdial/translations.jsonl data/speech_all/speech.jsonl data/speech/speech.jsonl -- \
  make_corpus

prepare() {
  local -a words=() folders=()
  xllm-speech prepare aishell1 --corpus "$aishell1" --out data/aishell1 --jobs "$nj" --max-rejected "$max_rejected"
  xllm-speech prepare aishell2 --corpus "$aishell2" --out data/aishell2 --jobs "$nj" --max-rejected "$max_rejected"
  if [ -n "$test_art" ]; then words=(--art "$test_art"); fi
  mapfile -t folders < <(existing "$coco" "$visdial" "$visdial/images")
  xllm-speech prepare vsdial-cn --annotations "${visdial_files[@]}" --images "${folders[@]}" \
    --translations data/visdial/translations.jsonl --speech data/speech --test-speech "${test_speech:-data/speech_all}" \
    --test-count "$test_count" --seed "$seed" --out data/vsdial --jobs "$nj" --max-rejected "$max_rejected" "${words[@]}"
  python3 local/spoken.py --cuts data/vsdial/train/cuts.jsonl.gz --out data/spoken/cuts.jsonl.gz
}
mapfile -t transcripts < <(existing "$aishell1"/{,data_aishell/}transcript/aishell_transcript_v0.8.txt \
  "$aishell2"/{,AISHELL-2/}iOS/data/trans.txt "$aishell2"/{,*/,*/*/}{iOS,Android,Mic}/{dev,test}/trans.txt)
mapfile -t own_tests < <(existing "${test_speech:+$test_speech/speech.jsonl}" "$test_art")
stage 1 "manifests" --with "places=$aishell1 $aishell2 $coco $visdial" "test=$test_speech $test_art $test_count" "seed=$seed" \
  "max_rejected=$max_rejected" --needs "${transcripts[@]}" "${visdial_there[@]}" "${own_tests[@]}" data/visdial/translations.jsonl \
  local/spoken.py \
  data/speech/speech.jsonl data/speech_all/speech.jsonl \
  --makes data/aishell1/train/cuts.jsonl.gz data/aishell2/{train,dev-ios}/cuts.jsonl.gz \
  data/vsdial/{train,dev}/{cuts,conversations}.jsonl.gz data/spoken/cuts.jsonl.gz "${test_cuts[@]}" -- \
  prepare

stage 2 "training cuts together" --needs data/{aishell1,aishell2,vsdial}/train/cuts.jsonl.gz --makes data/train/cuts.jsonl.gz -- \
  join_manifests data/train/cuts.jsonl.gz data/{aishell1,aishell2,vsdial}/train/cuts.jsonl.gz

stage 3 "token table" --needs data/train/cuts.jsonl.gz --makes data/tokens/tokens.txt -- \
  xllm-speech tokens --cuts data/train/cuts.jsonl.gz --kind char --out data/tokens

media_files() { # corpora
  local one
  for one in "$@"; do annotations_of "$one"; done
}
prepare_clips() {
  local one
  for one in msrvtt activitynet; do
    prepare_media "$one"
    translate_media "$one"
  done
  join_manifests data/instructed_clips.jsonl.gz data/zh/activitynet/*/conversations.jsonl.gz
  mkdir -p data/msrvtt_zh
  ln -sfn ../zh/msrvtt/train data/msrvtt_zh/train
  ln -sfn ../zh/msrvtt/dev data/msrvtt_zh/dev
}
mapfile -t clip_files < <(media_files msrvtt activitynet)
stage 4 "clips: MSR-VTT and ActivityNet in Chinese" --with "places=$msrvtt $activitynet" "translate=${translate_words[*]}" \
  "max_rejected=$max_rejected" --needs "${clip_files[@]}" local/pictures.sh \
  --makes data/msrvtt_zh/{train,dev}/conversations.jsonl.gz data/instructed_clips.jsonl.gz -- \
  prepare_clips

picture_data=data/pictures_$pictures/conversations.jsonl.gz
prepare_pictures() {
  local one file
  local -a train=() dev=()
  for_each "$nj" prepare_media "${corpora[@]}" minigpt4
  for one in "${corpora[@]}" minigpt4; do # one after the other: a translator may need all of the GPU
    translate_media "$one"
    if [ "$one" = minigpt4 ]; then continue; fi
    for file in data/zh/"$one"/*/conversations.jsonl.gz; do
      case $file in
        */coco/val/* | */aic/*val*/*) dev+=("$file") ;;
        *) train+=("$file") ;;
      esac
    done
  done
  join_manifests "$picture_data" "${train[@]}"
  if [ ${#dev[@]} -eq 0 ]; then dev=("${train[0]}"); fi
  join_manifests data/pictures_dev/conversations.jsonl.gz "${dev[@]}"
  join_manifests data/instructed_pictures.jsonl.gz data/zh/minigpt4/*/conversations.jsonl.gz
}
mapfile -t picture_files < <(media_files "${corpora[@]}" minigpt4)
stage 5 "pictures in Chinese" --with "corpora=${corpora[*]}" "translate=${translate_words[*]}" "min_score=$min_score" \
  "max_rejected=$max_rejected" --needs "${picture_files[@]}" local/pictures.sh \
  --makes "$picture_data" data/pictures_dev/conversations.jsonl.gz data/instructed_pictures.jsonl.gz -- \
  prepare_pictures

stage 6 "instruction data of phase 3" --with "seed=$seed" \
  --needs data/instructed_{pictures,clips}.jsonl.gz data/aishell2/train/cuts.jsonl.gz data/vsdial/train/{cuts,conversations}.jsonl.gz \
  --makes data/instructions/conversations.jsonl.gz -- \
  xllm-speech prepare instructions --vl data/instructed_pictures.jsonl.gz --video data/instructed_clips.jsonl.gz \
  --asr data/aishell2/train/cuts.jsonl.gz --vsd data/vsdial/train/conversations.jsonl.gz \
  --masr data/vsdial/train/cuts.jsonl.gz --seed "$seed" --out data/instructions

# ---------------------------------------------------------------- 10-19 CIF ASR

read -r -a asr_words <<<"$asr_options"
read -r -a xllm_words <<<"$xllm_options"
sees=()
if [[ $asr_sees == *image* ]]; then sees+=("model.visual.kind=clip" "model.visual.path=$clip"); else sees+=("data.image_size=0"); fi
if [[ $asr_sees == *caption* ]]; then
  sees+=("model.linguistic.kind=bert" "model.linguistic.path=$bert")
else
  sees+=("data.caption_share=0")
fi
vision=("model.encoders.vision.kind=eva" "model.encoders.vision.path=exp/weights/eva")
start=("start={weights: '', layout: ''}")
if [ "$init" = true ]; then start=("start={weights: exp/weights/qformer, layout: ''}"); fi

train_one() { # asr, image, video, speech or integrate
  local words out
  local -a more=("model.llm.path=$glm" "${vision[@]}")
  case $1 in
    asr) words=$(gpu_words 8 1) out=exp/asr more=("${sees[@]}" "${asr_words[@]}") ;;
    image)
      words=$(gpu_words 8 16) out=exp/xllm/image$tag
      more+=("${start[@]}" "data.train=[{path: $picture_data, tasks: [caption]}]" "data.epoch_batches=$picture_batches"
        "optim.decay_steps=$picture_steps" "${xllm_words[@]}")
      ;;
    video) words=$(gpu_words 2 16) out=exp/xllm/video$tag more+=("parents.image=exp/xllm/image$tag" "${xllm_words[@]}") ;;
    speech) words=$(gpu_words 8 16) out=exp/xllm/speech more+=("start.bert=$bert" "${xllm_words[@]}") ;;
    integrate)
      words=$(gpu_words 2 16) out=exp/xllm/integrate$tag
      more+=("parents.image=exp/xllm/image$tag" "parents.video=exp/xllm/video$tag" "${xllm_words[@]}")
      ;;
  esac
  # shellcheck disable=SC2086 # words
  run_cmd "$train_cmd" xllm-speech train --config "$conf/$1.yaml" --out "$out" $words "train.seed=$seed" "data.seed=$seed" \
    "${more[@]}"
}
train_side_by_side() {
  for_each "$parallel" train_one "$@"
}
train_first() {
  train_side_by_side "${first[@]}"
}
configs_of() {
  local one
  for one in "$@"; do config_with_bases "$conf/$one.yaml"; done
}

mapfile -t glm_there < <(existing "$glm")
mapfile -t bert_there < <(existing "$bert")
mapfile -t asr_needs < <(configs_of asr; existing "${asr_sees:+$clip}" "${asr_sees:+$bert}")
convert() {
  xllm-speech convert "$eva" --from eva --out exp/weights/eva
  if [ "$init" = true ]; then xllm-speech convert "$blip2" --from lavis --out exp/weights/qformer; fi
}
mapfile -t foreign < <(existing "$eva" "$blip2")
converted=(exp/weights/eva/model.safetensors)
if [ "$init" = true ]; then converted+=(exp/weights/qformer/model.safetensors); fi
first=(asr) # no part of stage 11's fingerprint: how many trainings run side by side changes none of them
if ((parallel > 1 && stop_stage >= 21)); then
  # The image interface needs nothing of phase 1: what it stands on is made before, and stage 21 finds it trained.
  first=(asr image)
  stage 20 "the image encoder, and the Q-Former of BLIP-2" --with "eva=$eva" "blip2=$blip2" "init=$init" --needs "${foreign[@]}" \
    --makes "${converted[@]}" -- \
    convert
fi
stage 11 "phase 1: the CIF ASR model" --with "seed=$seed" "options=$asr_options" "sees=$asr_sees" \
  --needs "${asr_needs[@]}" data/train/cuts.jsonl.gz data/vsdial/dev/cuts.jsonl.gz data/tokens/tokens.txt \
  --resumes exp/asr --makes exp/asr/final/model.safetensors -- \
  train_first

stage 12 "average checkpoints" --needs exp/asr/final/model.safetensors --makes exp/asr/average/model.safetensors -- \
  xllm-speech average exp/asr --last "$average" --out exp/asr/average

words_of_condition() {
  case $1 in
    S) printf '%s\n' --no-images --no-captions ;;
    S+V) printf '%s\n' --no-captions ;;
    S+L) printf '%s\n' --no-images ;;
  esac
}
sets_to() { # name of the outputs, sets
  local name
  for name in "${@:2}"; do printf '%s=exp/decode/%s/%s\n' "$(cuts_of "$name")" "$name" "$1"; done
}
decode() {
  local condition
  local -a words sets
  for condition in "${conditions[@]}"; do
    mapfile -t words < <(words_of_condition "$condition")
    mapfile -t sets < <(sets_to "$condition.jsonl" "${seen_sets[@]}")
    if [ "$condition" = S ]; then mapfile -t -O ${#sets[@]} sets < <(sets_to S.jsonl "${heard_sets[@]}"); fi
    transcribe_sets "${sets[@]}" -- --model exp/asr/average "${words[@]}"
  done
}
stage 13 "decode the test sets" --needs exp/asr/average/model.safetensors "${test_cuts[@]}" --makes "${hypotheses[@]}" -- \
  decode

score() { # hypotheses
  local hypothesis name condition
  for hypothesis in "$@"; do
    name=${hypothesis#exp/decode/}
    condition=${name#*/}
    condition=${condition%.jsonl}
    name=${name%%/*}
    if [ ! -e "data/kaldi/$name/text" ] || [ "$(cuts_of "$name")" -nt "data/kaldi/$name/text" ]; then
      xllm-speech prepare export-kaldi --cuts "$(cuts_of "$name")" --out "data/kaldi/$name"
    fi
    xllm-speech score --ref "data/kaldi/$name/text" --hyp "$hypothesis" --set-name "$name ${condition#llm"$tag"_}" \
      --out "exp/score/$name/$condition.json"
  done
}
stage 14 "score" --needs "${test_cuts[@]}" "${hypotheses[@]}" --makes "${scores[@]}" -- \
  score "${hypotheses[@]}"

stage 15 "store CIF units" --needs exp/asr/average/model.safetensors data/aishell2/{train,dev-ios}/cuts.jsonl.gz data/spoken/cuts.jsonl.gz \
  --makes exp/units/units.json -- \
  run_cmd "$decode_cmd" xllm-speech units --model exp/asr/average --cuts data/aishell2/train data/aishell2/dev-ios data/spoken \
  --out exp/units --device "$device" --jobs "$((nj < 4 ? nj : 4))" --dtype float16 --max-rejected "$max_rejected"

drop_not_understood() {
  rm -rf data/understood
  if [ "$round_trip" = false ]; then
    ln -s spoken data/understood
    return
  fi
  # More parts than processes: a kill costs those in hand.
  decode_parts=$((nj > 1 ? 4 * nj : 1)) transcribe data/spoken/cuts.jsonl.gz exp/round_trip/heard.jsonl \
    --model exp/asr/average --no-images --no-captions
  xllm-speech prepare round-trip --cuts data/spoken/cuts.jsonl.gz --heard exp/round_trip/heard.jsonl --max-cer "$max_cer" \
    --max-dropped "$max_dropped" --out data/understood
}
stage 16 "round trip: drop what is not understood" --with "round_trip=$round_trip" \
  "max_cer=$max_cer" "max_dropped=$max_dropped" --needs exp/asr/average/model.safetensors data/spoken/cuts.jsonl.gz \
  --makes data/understood/cuts.jsonl.gz -- \
  drop_not_understood

# ---------------------------------------------------------------- 20-29 interfaces

if [ "${#first[@]}" -eq 1 ]; then
  stage 20 "the image encoder, and the Q-Former of BLIP-2" --with "eva=$eva" "blip2=$blip2" "init=$init" --needs "${foreign[@]}" \
    --makes "${converted[@]}" -- \
    convert
fi

mapfile -t align_configs < <(configs_of image speech)
stage 21 "phase 2: image and speech interfaces" --with "seed=$seed" "options=$xllm_options" "pictures=$pictures" "init=$init" \
  --needs "${align_configs[@]}" "${glm_there[@]}" "${bert_there[@]}" "${converted[@]}" exp/asr/average/model.safetensors \
  exp/units/units.json "$picture_data" data/pictures_dev/conversations.jsonl.gz data/aishell2/{train,dev-ios}/cuts.jsonl.gz \
  data/understood/cuts.jsonl.gz --resumes "exp/xllm/image$tag" exp/xllm/speech \
  --makes "exp/xllm/image$tag/final/model.safetensors" exp/xllm/speech/final/model.safetensors -- \
  train_side_by_side image speech

mapfile -t video_configs < <(configs_of video)
stage 22 "phase 2: video interface, from the image interface" --with "seed=$seed" "options=$xllm_options" \
  --needs "${video_configs[@]}" "${glm_there[@]}" exp/weights/eva/model.safetensors "exp/xllm/image$tag/final/model.safetensors" \
  data/msrvtt_zh/{train,dev}/conversations.jsonl.gz \
  --resumes "exp/xllm/video$tag" --makes "exp/xllm/video$tag/final/model.safetensors" -- \
  train_one video

# ---------------------------------------------------------------- 30-39 integration

mapfile -t integrate_configs < <(configs_of integrate)
interfaces=("exp/xllm/image$tag/final/model.safetensors" exp/xllm/speech/final/model.safetensors "exp/xllm/video$tag/final/model.safetensors")
stage 30 "phase 3: the adapters together" --with "seed=$seed" "options=$xllm_options" \
  --needs "${integrate_configs[@]}" "${glm_there[@]}" exp/weights/eva/model.safetensors "${interfaces[@]}" \
  exp/asr/average/model.safetensors data/instructions/conversations.jsonl.gz data/vsdial/dev/conversations.jsonl.gz \
  --resumes "exp/xllm/integrate$tag" --makes "exp/xllm/integrate$tag/final/model.safetensors" -- \
  train_one integrate

# ---------------------------------------------------------------- 40-49 decoding

read -r -a llm_words <<<"$llm_decode_options"
model=exp/xllm/integrate$tag
llm_decode() {
  local -a sets
  mapfile -t sets < <(sets_to "llm${tag}_S.jsonl" "${seen_sets[@]}" "${heard_sets[@]}")
  transcribe_sets "${sets[@]}" -- --method llm --model "$model" --no-images "${llm_words[@]}"
  mapfile -t sets < <(sets_to "llm${tag}_S+V.jsonl" "${seen_sets[@]}")
  transcribe_sets "${sets[@]}" -- --method llm --model "$model" "${llm_words[@]}"
}
stage 40 "recognise the test sets with the X-LLM" --with "options=$llm_decode_options" \
  --needs "$model/final/model.safetensors" "${interfaces[@]}" exp/asr/average/model.safetensors "${test_cuts[@]}" \
  --makes "${llm_hypotheses[@]}" -- \
  llm_decode

answers=exp/answers/llava$tag.jsonl
answer_llava() {
  python3 local/llava_test.py pictures --questions "$llava/question90_zh.json" --coco "$coco" "$coco/val2014" --out data/llava_test/images
  xllm-speech prepare released --annotations "$llava/question90_zh.json" --images data/llava_test/images --out data/llava_test
  run_cmd "$decode_cmd" xllm-speech answer --model "$model" --conversations data/llava_test/question90_zh/conversations.jsonl.gz \
    --device "$(part_device 1)" "${llm_words[@]}" --out "$answers"
}
mapfile -t questions < <(existing "$llava/question90_zh.json")
stage 41 "answer LLaVA-test" --with "options=$llm_decode_options" --needs "$model/final/model.safetensors" "${interfaces[@]}" \
  "${questions[@]}" --makes "$answers" -- \
  answer_llava

# ---------------------------------------------------------------- 50-59 scoring and report

stage 50 "score the X-LLM's recognition" --needs "${test_cuts[@]}" "${llm_hypotheses[@]}" --makes "${llm_scores[@]}" -- \
  score "${llm_hypotheses[@]}"

judged=exp/judge/summary$tag.json
judge() {
  local -a words=() table=()
  python3 local/llava_test.py texts --answers "$answers" --out "exp/judge/texts$tag.jsonl"
  if [ -s "exp/judge/texts$tag.jsonl" ]; then # a model that says nothing is judged too
    xllm-speech prepare translate --input "exp/judge/texts$tag.jsonl" --out "exp/judge/english$tag.jsonl" --from zh_CN --to en_XX \
      --cache data/translations.sqlite --max-rejected "$max_rejected" "${judge_translate_words[@]}"
    table=(--table "exp/judge/english$tag.jsonl")
  fi
  python3 local/llava_test.py answers --answers "$answers" "${table[@]}" --out "exp/judge/answers$tag.jsonl"
  if [ -e "$llava/caps_boxes_coco2014_val_80.jsonl" ]; then words+=(--contexts "$llava/caps_boxes_coco2014_val_80.jsonl"); fi
  if [ -e "$llava/rule.json" ]; then words+=(--rules "$llava/rule.json"); fi
  xllm-speech judge run --questions "$llava/question90.jsonl" --answers "exp/judge/answers$tag.jsonl" \
    --reference "$llava/qa90_gpt4_answer.jsonl" --url "$judge_url" --model "$judge_model" --out "exp/judge/verdicts$tag.jsonl" \
    "${words[@]}"
  xllm-speech judge summarize "exp/judge/verdicts$tag.jsonl" --json >"$judged.part"
  mv "$judged.part" "$judged"
}
judge_makes=()
if [ -n "$judge_url" ]; then
  judge_makes=("$judged")
  mapfile -t judge_files < <(existing "$llava"/{question90.jsonl,qa90_gpt4_answer.jsonl,caps_boxes_coco2014_val_80.jsonl,rule.json})
  stage 51 "translate the answers and have them judged" --with "judge=$judge_model" "translate=${judge_translate_words[*]}" \
    --needs "$answers" "${judge_files[@]}" --makes "$judged" -- \
    judge
elif ((stage <= 51 && stop_stage >= 51)); then
  printf 'stage 51: answers are not judged: no --judge-url names an OpenAI-compatible endpoint\n' >&2
fi

show_results() {
  python3 ../../local/show_results.py --minutes exp/minutes.tsv --out exp/report/metrics.json --markdown RESULTS.md \
    --heading "Results of vsdial_cn" --judged "X-LLM=exp/judge/summary.json" "X-LLM w/ 4M=exp/judge/summary_4M.json" \
    "X-LLM w/ 4M, no init=exp/judge/summary_4M_no_init.json" -- "${results[@]}"
}
stage 52 "tables beside the paper's" --with "tag=$tag" --needs "${scores[@]}" "${llm_scores[@]}" "${judge_makes[@]}" \
  ../../local/show_results.py --makes exp/report/metrics.json RESULTS.md -- \
  show_results

read -r -a condition_words <<<"$condition_options"
compare_conditions() {
  local -a how=(--cuts "$(cuts_of test-orig)" --set-name test-orig --seed "$seed" --device "$(part_device 1)" "${condition_words[@]}")
  run_cmd "$decode_cmd" xllm-speech conditions --model exp/asr/average "${how[@]}" --out exp/conditions/cif_asr
  run_cmd "$decode_cmd" xllm-speech conditions --method llm --model "$model" --wordings "${how[@]}" --out "exp/conditions/llm_asr$tag"
}
compared=("exp/conditions/cif_asr/conditions.json" "exp/conditions/llm_asr$tag"/{conditions,wordings}.json)
stage 53 "does the image help: right, wrong and grey images, captions, wordings" --with "seed=$seed" "options=$condition_options" \
  --needs "$model/final/model.safetensors" "${interfaces[@]}" exp/asr/average/model.safetensors "$(cuts_of test-orig)" \
  --makes "${compared[@]}" -- \
  compare_conditions

stage 59 "report" --needs exp/report/metrics.json "${compared[@]}" --makes exp/report/index.html -- \
  xllm-speech report exp --out exp/report/index.html

# ---------------------------------------------------------------- 60-69 demo and export

stage 60 "export the X-LLM as one folder" --with "options=$export_options" \
  --needs "$model/final/model.safetensors" "${interfaces[@]}" exp/asr/average/model.safetensors exp/weights/eva/model.safetensors \
  "${glm_there[@]}" exp/report/metrics.json --makes "exp/export$tag/model.safetensors" "exp/export$tag/README.md" -- \
  export_model "$model" "exp/export$tag" "AISHELL-1, AISHELL-2, VSDial-CN, pictures ($pictures) and clips (egs/vsdial_cn)."

stage_demo "exp/export$tag"

end_recipe
