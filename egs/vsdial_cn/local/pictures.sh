# shellcheck shell=bash
# shellcheck disable=SC2154 # the folders of the corpora and the options come from run.sh
# The files of each corpus of pictures and clips, to be sourced by run.sh: where its publishers put annotations and pictures.

# Files or folders below $1, at most three levels down, that match a pattern; sorted, one a line.
below() { # folder, f or d, pattern
  if [ -d "$1" ]; then find -L "$1" -maxdepth 3 -type "$2" -name "$3" | LC_ALL=C sort; fi
}

# Annotation files of a corpus, one a line.
annotations_of() {
  case $1 in
    coco) existing "$coco/annotations/captions_train2014.json" "$coco/annotations/captions_val2014.json" ;;
    flickr30k) below "$flickr30k" f results_20130124.token ;;
    aic) below "$aic" f 'caption_*_annotations_*.json' ;;
    visual-genome) below "$visual_genome" f region_descriptions.json ;;
    cc3m) below "$cc3m" f 'Train_GCC-training.tsv*' ;;
    sbu) below "$sbu" f SBU_captioned_photo_dataset_urls.txt ;;
    wukong) below "$wukong" f 'wukong_100m_*.csv' ;;
    minigpt4) existing "$minigpt4/filter_cap.json" ;;
    msrvtt) below "$msrvtt" f train_val_videodatainfo.json ;;
    activitynet)
      below "$activitynet" f train.json
      if [ ! -e "$activitynet/train.json" ]; then below "$activitynet" f val_1.json; fi
      ;;
    *)
      printf 'unknown corpus %s; known: coco flickr30k aic visual-genome cc3m sbu wukong\n' "$1" >&2
      return 2
      ;;
  esac
}

# Folders of its pictures or clips, one a line.
media_of() {
  case $1 in
    coco) printf '%s\n' "$coco" ;;
    flickr30k) below "$flickr30k" d flickr30k-images ;;
    aic) below "$aic" d 'caption_*_images_*' ;;
    visual-genome) printf '%s\n' "$visual_genome" ;;
    cc3m | sbu | wukong) printf '%s\n' "${!1}/images" ;;
    minigpt4) printf '%s\n' "$minigpt4/image" ;;
    msrvtt) existing "$msrvtt"/{videos,TrainValVideo} ;;
    activitynet) existing "$activitynet/videos" ;;
  esac
}

# data/raw/CORPUS/SET/conversations.jsonl.gz
prepare_media() {
  local -a files=() folders=() words=()
  local kind=--images
  mapfile -t files < <(annotations_of "$1")
  mapfile -t folders < <(media_of "$1")
  case $1 in
    visual-genome) words=(--image-data "$visual_genome/image_data.json") ;;
    msrvtt | activitynet) kind=--videos ;;
  esac
  prepare_raw() { # output, more words
    xllm-speech prepare "$corpus" --annotations "${files[@]}" "$kind" "${folders[@]}" --jobs "$nj" \
      --max-rejected "$max_rejected" "${words[@]}" --out "$@"
  }
  local -r corpus=$1
  if [ "$1" != wukong ]; then
    prepare_raw "data/raw/$1"
    return
  fi
  # Wukong is filtered by how well picture and text agree (A.1): all of it first, scores, then what reaches the least score.
  prepare_raw data/raw/wukong_all
  join_manifests data/raw/wukong_all.jsonl.gz data/raw/wukong_all/*/conversations.jsonl.gz
  xllm-speech prepare similarity --input data/raw/wukong_all.jsonl.gz --clip "$similarity" --device "$device" \
    --out data/raw/wukong_scores.txt
  prepare_raw data/raw/wukong --scores data/raw/wukong_scores.txt --min-score "$min_score"
}

# data/raw/CORPUS/SET -> data/zh/CORPUS/SET, in Chinese; AI Challenger and Wukong are Chinese already.
translate_media() {
  local manifest out
  for manifest in data/raw/"$1"/*/conversations.jsonl.gz; do
    out=data/zh/${manifest#data/raw/}
    mkdir -p "${out%/*}"
    case $1 in
      aic | wukong) ln -sf "$(realpath "$manifest")" "$out" ;;
      *) translate "$manifest" "$out" ;;
    esac
  done
}

translate() { # input, output, more words of xllm-speech prepare translate
  xllm-speech prepare translate --input "$1" --out "$2" --cache data/translations.sqlite --max-rejected "$max_rejected" \
    "${translate_words[@]}" "${@:3}"
}
