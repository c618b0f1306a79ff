#!/usr/bin/env bash
# Trains zoomldm-tiny on and measures it: bash benchmarks/tiny/remake.sh DATA WORK [STEPS]
#
# DATA is the folder of test data. From the weights in the package to new ones there, with what the model card says of
# them in WORK/results. Drawing, preparing and training keep what exists, so a killed run goes on.
set -euo pipefail
data=$1 work=$2 steps=${3:-600}
package=zoomfeat/weights/zoomldm-tiny
mkdir -p "$work"
export OMP_NUM_THREADS=1

prepare() { # SLIDES NAME key=value...
  zoomfeat prepare slides="$1" out="$work/set/$2" ssl_encoder=efficientnet-lite0 first_stage=zoomldm-tiny \
    unpooled=false workers=1 "${@:3}"
}

# Two at a time: each is one process with one thread.
python -m benchmarks.tiny.cohort "$data" "$work/cohort" --collages 24 --held-out-collages 6 --workers 1 &
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
prepare "$work/phantom.csv" phantom min_tissue_coarsest=0.05 "magnifications=[20x,10x,5x,2.5x,1.25x]"
wait "$cohort"
prepare "$work/cohort/pictures/manifest.csv" pictures min_tissue_coarsest=0.01 "magnifications=[20x,10x,5x,2.5x]" &
pictures=$!
prepare "$work/cohort/collages" collages min_tissue_coarsest=0.001 origins=16 \
  "magnifications=[5x,2.5x,1.25x,0.625x,0.3125x,0.15625x]"
wait "$pictures"

export OMP_NUM_THREADS=2
train() { # COMMAND OUT key=value...
  zoomfeat "$1" data="$work/set" out="$work/runs/$2" batch_size=32 schedule=cosine warmup=20 mixed_precision=bf16 \
    workers=1 checkpoint_every=100 validate_every=200 sample_every=200 "held_out_slides=[held-out-*]" "${@:3}"
}
[ -e "$work/start" ] || cp -r "$package" "$work/start" # what training starts from, though the package changes below
train train-ldm ldm init="$work/start" loss_weight=velocity steps="$steps" learning_rate=4e-4 max_grad_norm=1 \
  ema_decay=0.99 sample_steps=20 guidance=1.5
ldm=$(ls -d "$work"/runs/ldm/checkpoints/step-* | tail -1)/model
train train-cdm cdm model="$ldm" init="$work/start/cdm" steps=300 learning_rate=8e-4 ema_decay=0.98
cdm=$(ls -d "$work"/runs/cdm/checkpoints/step-* | tail -1)/model
# The twin learns on for as long as it takes to forget the condition; it has more steps behind it than what ships.
train train-ldm twin init="$ldm" loss_weight=velocity steps=300 learning_rate=2e-4 max_grad_norm=1 ema_decay=0.99 \
  drop_condition=0.999 seed=7

python -m benchmarks.tiny.ship "$ldm" "$cdm"
python -m benchmarks.tiny.samples "$work/set" "$work/results/twin" --weights "$(ls -d "$work"/runs/twin/checkpoints/step-* |
  tail -1)/model" --count 0 --items 128
python -m benchmarks.tiny.samples "$work/set" "$work/results" --items 128 --steps 20
python -m benchmarks.tiny.probe "$data" "$work/results"
