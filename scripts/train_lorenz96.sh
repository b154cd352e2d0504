#!/bin/sh
# Makes the shipped prior of the noisy Lorenz-96 system on 40 sites: gated convolutions on windows of
# 16 states. About 5 minutes on one CPU core. Extra arguments go to `sda train`.
set -eu
cd "$(dirname "$0")/.."
DATA=runs/lorenz96.zarr
test -e "$DATA" ||
    sda simulate system=lorenz96 members=1024 length=512 spinup=512 seed=0 out="$DATA"
sda train data="$DATA" out=sda/priors/lorenz96 network=gated training=default \
    training.window=16 training.climatology_window=33 training.batch=32 training.steps=1600 \
    training.decay=0.5 training.core='[0.02,3.0]' training.tail='[0.005,100.0]' \
    training.symmetries='[{roll:{site:1}}]' device=cpu "$@"
