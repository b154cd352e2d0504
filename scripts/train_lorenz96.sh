#!/bin/sh
# Makes the shipped prior of the noisy Lorenz-96 system on 40 sites: gated convolutions on windows of
# 33 states, in 4,836 s beside much other work. The shipped weights were on the way to 12,000 steps
# (decay=0.5) until 2,000, to 3,600 (decay=0.45) until 2,600, and then as below, so that their learning
# rate fell from 1,980 steps on, and faster from 2,600 on. Extra arguments go to `sda train`.
set -eu
cd "$(dirname "$0")/.."
DATA=runs/lorenz96.zarr
test -e "$DATA" ||
    sda simulate system=lorenz96 members=1024 length=512 spinup=512 seed=0 out="$DATA"
sda train data="$DATA" out=sda/priors/lorenz96 network=gated network.width=128 \
    network.dilations='[1,2]' training=default training.window=33 training.batch=48 \
    training.steps=2800 training.decay=0.1157 training.core='[0.02,5.0]' \
    training.tail='[0.005,100.0]' training.symmetries='[{roll:{site:1}}]' \
    training.precision=bfloat16 device=cpu "$@"
