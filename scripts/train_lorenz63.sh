#!/bin/sh
# Makes the shipped prior of the noisy Lorenz-63 system: data as in Rozet & Louppe (2023), one window
# of 65 states. About 30 minutes on one CPU core. The shipped weights were resumed at 1,500, 3,000,
# 4,500 and 6,500 steps with more steps to go, so their learning rate rose again at those. Extra
# arguments go to `sda train`.
set -eu
cd "$(dirname "$0")/.."
DATA=runs/lorenz63.zarr
test -e "$DATA" ||
    sda simulate system=lorenz63 members=1024 length=1024 spinup=1024 seed=0 out="$DATA"
sda train data="$DATA" out=sda/priors/lorenz63 network=mlp training=vectors \
    training.window=65 training.batch=256 training.steps=8500 training.decay=0.5 \
    training.core='[0.005,5.0]' training.tail='[0.002,100.0]' \
    training.symmetries='[{sign:{x:-1,y:-1}}]' device=cpu "$@"
