#!/bin/sh
# Makes the shipped prior of the Kolmogorov flow on 32 cells per side: gated convolutions on windows
# of 9 states. About 20 minutes of simulation and 90 minutes of training on one CPU core with AMX
# bfloat16. Extra arguments go to `sda train`.
set -eu
cd "$(dirname "$0")/.."
DATA=runs/kolmogorov32.zarr
test -e "$DATA" ||
    sda simulate system=kolmogorov system.size=32 members=256 length=128 spinup=64 seed=1 \
        out="$DATA"
sda train data="$DATA" out=sda/priors/kolmogorov network=gated_kolmogorov32 \
    training=kolmogorov32 device=cpu "$@"
