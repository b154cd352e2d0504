#!/bin/sh
# Makes the shipped prior of the toy ocean: gated convolutions on windows of 9 states. About three
# minutes of simulation and 40 minutes of training on one thread of a CPU with AMX bfloat16. The
# learning rate is constant for 9,000 steps and falls to zero over the last 3,000. Extra arguments
# go to `sda train`.
set -eu
cd "$(dirname "$0")/.."
DATA=runs/toy_ocean.zarr
test -e "$DATA" ||
    sda simulate system=toy_ocean members=64 length=256 spinup=300 seed=1 out="$DATA"
TRAIN="sda train data=$DATA out=sda/priors/toy-ocean network=gated_toy training=toy_ocean device=cpu"
$TRAIN training.steps=9000 training.decay=0 training.calibrate=false "$@"
$TRAIN training.steps=12000 training.decay=0.25 resume=true "$@"
