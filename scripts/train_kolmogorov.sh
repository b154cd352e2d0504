#!/bin/sh
# Makes the shipped prior of the Kolmogorov flow on 32 cells per side: gated convolutions on windows
# of 9 states. About 15 minutes of simulation and three hours of training on one CPU core with AMX
# bfloat16. The first stage stresses the small noise levels, where dynamical consistency is decided,
# the second the larger ones, where energy is, the third both. Of the shipped weights, the second
# stage was stopped on the way to 17,500 steps at 14,000, and ended at 16,500. Extra arguments go to
# `sda train`.
set -eu
cd "$(dirname "$0")/.."
DATA=runs/kolmogorov32.zarr
test -e "$DATA" ||
    sda simulate system=kolmogorov system.size=32 members=256 length=128 spinup=64 seed=1 \
        out="$DATA"
TRAIN="sda train data=$DATA out=sda/priors/kolmogorov network=gated_kolmogorov32
    training=kolmogorov32 device=cpu"
$TRAIN training.core='[0.01,2.0]' training.steps=8250 training.decay=0 training.calibrate=false "$@"
$TRAIN resume=true training.steps=16500 training.decay=0.4 training.core='[0.02,10.0]' \
    training.calibrate=false "$@"
$TRAIN resume=true "$@"
