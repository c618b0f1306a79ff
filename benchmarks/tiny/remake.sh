#!/usr/bin/env bash
# Trains zoomldm-tiny on and measures it: bash benchmarks/tiny/remake.sh DATA WORK [STEPS]
#
# DATA is the folder of test data. From the weights in the package to new ones there, with what the model card says of
# them in WORK/results. Drawing, preparing and training keep what exists, so a killed run goes on.
set -euo pipefail
data=$1 work=$2 steps=${3:-600}
package=zoomfeat/weights/zoomldm-tiny
mkdir -p "$work"
[ -e "$work/start" ] || cp -r "$package" "$work/start" # what training starts from, though the package changes below
export OMP_NUM_THREADS=1

prepare() { # SLIDES SET key=value...
  zoomfeat prepare slides="$1" out="$work/$2" unpooled=false workers=1 "${@:3}"
}
pictures=(min_tissue_coarsest=0.01 "magnifications=[20x,10x,5x,2.5x]")
phantom=(min_tissue_coarsest=0.05 "magnifications=[20x,10x,5x,2.5x,1.25x]")
collages=(min_tissue_coarsest=0.001 "magnifications=[5x,2.5x,1.25x,0.625x,0.3125x,0.15625x]")

# Two at a time: each is one process with one thread.
python -m benchmarks.tiny.cohort "$data" "$work/cohort" --collages 16 --held-out-collages 6 --workers 1 &
cohort=$!
python -m benchmarks.phantom "$work/phantom" --slides 24 --seed 20241 --workers 1
python - "$work" <<'PYTHON'
import sys
from pathlib import Path

import pandas as pd

slides = sorted((Path(sys.argv[1]) / "phantom" / "slides").glob("*.tiff"))
names = [("held-out-" if number < 3 else "") + slide.stem for number, slide in enumerate(slides)]
paths = [slide.resolve() for slide in slides]
pd.DataFrame({"path": paths, "slide_id": names}).to_csv(Path(sys.argv[1]) / "phantom.csv", index=False)
PYTHON
wait "$cohort"

# The first stage reads images only: embeddings that cost nothing, and a few of the synthetic slides.
mkdir -p "$work/some"
for name in held-out-collage-000 train-collage-00{0,1,2,3}; do
  ln -sf "$(realpath "$work/cohort/collages/$name.tiff")" "$work/some/"
done
images=(ssl_encoder=color-stats first_stage="$work/start")
prepare "$work/cohort/pictures/manifest.csv" images/pictures "${images[@]}" "${pictures[@]}"
prepare "$work/phantom.csv" images/phantom "${images[@]}" "${phantom[@]}"
prepare "$work/some" images/collages "${images[@]}" "${collages[@]}" origins=4
zoomfeat train-first-stage data="$work/images" out="$work/runs/first-stage" init="$work/start" steps=1600 \
  schedule=cosine batch_size=8 crop=128 learning_rate=8e-4 warmup=50 max_grad_norm=1 perceptual_weight=0.3 \
  mixed_precision=bf16 workers=0 checkpoint_every=200 validate_every=200 sample_every=400 \
  "held_out_slides=[held-out-*]"
python - "$work" <<'PYTHON'
import sys
from pathlib import Path
from shutil import copytree

import torch

from generation.batches import read_images
from generation.data import TrainingSet
from generation.first_stage import standardise_latents
from generation.initial import initial_first_stage

work = Path(sys.argv[1])
vae = initial_first_stage("tiny", str(max((work / "runs" / "first-stage" / "checkpoints").glob("step-*")) / "model"))
data = TrainingSet.open(work / "images")
training = [i for i in range(len(data)) if not data[i].slide.startswith("held-out-")]
with torch.no_grad():
    latents = torch.cat([vae.encode(read_images(data, [i])).latents for i in training[:: len(training) // 600]])
standardise_latents(vae, latents)
copytree(work / "start", work / "base", dirs_exist_ok=True)
vae.save_pretrained(work / "base" / "vae")
PYTHON

sets=(ssl_encoder=efficientnet-lite0 first_stage="$work/base")
prepare "$work/phantom.csv" set/phantom "${sets[@]}" "${phantom[@]}"
prepare "$work/cohort/pictures/manifest.csv" set/pictures "${sets[@]}" "${pictures[@]}" &
others=$!
prepare "$work/cohort/collages" set/collages "${sets[@]}" "${collages[@]}" origins=16
wait "$others"

export OMP_NUM_THREADS=2
train() { # COMMAND OUT key=value...
  zoomfeat "$1" data="$work/set" out="$work/runs/$2" batch_size=32 schedule=cosine warmup=20 mixed_precision=bf16 \
    workers=1 checkpoint_every=100 validate_every=200 sample_every=200 "held_out_slides=[held-out-*]" "${@:3}"
}
train train-ldm ldm init="$work/base" loss_weight=velocity steps="$steps" learning_rate=4e-4 max_grad_norm=1 \
  ema_decay=0.99 sample_steps=20 guidance=1.5
ldm=$(ls -d "$work"/runs/ldm/checkpoints/step-* | tail -1)/model
train train-cdm cdm model="$ldm" init="$work/base/cdm" steps=300 learning_rate=8e-4 ema_decay=0.98
cdm=$(ls -d "$work"/runs/cdm/checkpoints/step-* | tail -1)/model

# The decoder alone once more, for pictures that look sharp: what was trained over the latents stays valid.
export OMP_NUM_THREADS=1
zoomfeat train-first-stage data="$work/images" out="$work/runs/decoder" init="$ldm" decoder_only=true steps=1200 \
  schedule=cosine batch_size=8 crop=128 learning_rate=8e-4 warmup=20 max_grad_norm=1 perceptual_weight=3 \
  "perceptual_stages=[0,1,2,3,4]" mixed_precision=bf16 workers=0 checkpoint_every=100 validate_every=400 \
  "held_out_slides=[held-out-*]"
rm -rf "$work/model"
cp -r "$ldm" "$work/model"
rm -rf "$work/model/vae"
cp -r "$(ls -d "$work"/runs/decoder/checkpoints/step-* | tail -1)/model" "$work/model/vae"
export OMP_NUM_THREADS=2
# The twin learns on for as long as it takes to forget the condition; it has more steps behind it than what ships.
train train-ldm twin init="$ldm" loss_weight=velocity steps=300 learning_rate=2e-4 max_grad_norm=1 ema_decay=0.99 \
  drop_condition=0.999 seed=7

python -m benchmarks.tiny.ship "$work/model" "$cdm"
python -m benchmarks.tiny.samples "$work/set" "$work/results/twin" --weights "$(ls -d "$work"/runs/twin/checkpoints/step-* |
  tail -1)/model" --count 0 --items 128
python -m benchmarks.tiny.samples "$work/set" "$work/results" --items 128 --steps 10 --guidance 5
python -m benchmarks.tiny.probe "$data" "$work/results"
