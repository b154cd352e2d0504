#!/bin/sh
# Makes the shipped prior of the Kolmogorov flow on 32 cells per side: gated convolutions on windows
# of 16 states. About 20 minutes of simulation and 80 of training on one CPU core with AMX bfloat16.
# The shipped weights were resumed at 4,500, 5,500, 10,500 and 16,000 steps, on the way to 21,000,
# 21,000, 26,000, 21,500 and, from 16,000 on, 19,500 steps: their learning rate fell from 12,900 steps
# on, and faster from 16,000 on. Extra arguments go to `sda train`.
set -eu
cd "$(dirname "$0")/.."
DATA=runs/kolmogorov32.zarr
test -e "$DATA" ||
    sda simulate system=kolmogorov system.size=32 members=256 length=128 spinup=64 seed=1 \
        out="$DATA"
sda train data="$DATA" out=sda/priors/kolmogorov network=gated_kolmogorov32 \
    training=kolmogorov32 device=cpu "$@"
