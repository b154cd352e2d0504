#!/bin/sh
# Makes the shipped prior of the toy weather: gated convolutions on windows of 9 states. About three
# minutes of simulation and an hour of training on one thread of a busy CPU with AMX bfloat16. The
# learning rate is constant for 5,500 steps and falls to zero over the last 1,500. Extra arguments
# go to `sda train`.
set -eu
cd "$(dirname "$0")/.."
DATA=runs/toy_weather.zarr
test -e "$DATA" ||
    sda simulate system=toy_weather members=48 length=240 spinup=400 seed=1 out="$DATA"
TRAIN="sda train data=$DATA out=sda/priors/toy-weather network=gated_toy training=toy_weather
    device=cpu"
$TRAIN training.steps=5500 training.decay=0 training.calibrate=false "$@"
$TRAIN training.steps=7000 training.decay=0.2143 resume=true "$@"
