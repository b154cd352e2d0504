#!/bin/sh
# Makes the shipped prior of the Kolmogorov flow on 32 cells per side: gated convolutions on windows
# of 9 states. About 15 minutes of simulation and 70 minutes of training on one CPU core with AMX
# bfloat16. Half of the training stresses the small noise levels, where dynamical consistency is
# decided, the rest the larger ones, where energy is. The shipped weights were on the way to 17,500
# steps until 14,000, hence their learning rate fell a little later. Extra arguments go to `sda train`.
set -eu
cd "$(dirname "$0")/.."
DATA=runs/kolmogorov32.zarr
test -e "$DATA" ||
    sda simulate system=kolmogorov system.size=32 members=256 length=128 spinup=64 seed=1 \
        out="$DATA"
TRAIN="sda train data=$DATA out=sda/priors/kolmogorov network=gated_kolmogorov32
    training=kolmogorov32 device=cpu"
$TRAIN training.core='[0.01,2.0]' training.steps=8250 training.decay=0 training.calibrate=false "$@"
$TRAIN resume=true "$@"
