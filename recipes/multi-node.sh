#!/bin/sh
# Both stages of a recipe's folder on several machines. Start it on each of them, with the NODE_RANK 0, 1 and so on:
#
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=192.0.2.1 sh recipes/multi-node.sh recipes/llama3.2-3b-greek-layermoe \
#       per_device_train_batch_size=2
#
# MASTER_ADDR is the address of the machine with NODE_RANK 0. Further words are keys of both YAMLs.
set -eu
: "${NNODES:?how many machines}" "${NODE_RANK:?which of them this is, from 0}" "${MASTER_ADDR:?address of machine 0}"
export FORCE_TORCHRUN=1 NNODES NODE_RANK MASTER_ADDR MASTER_PORT="${MASTER_PORT:-29500}"
folder=${1:?a folder with stage1.yaml and stage2.yaml}
shift
for stage in stage1 stage2; do
    llamafactory-cli train "$folder/$stage.yaml" deepspeed="${0%/*}/deepspeed/zero2.json" "$@"
done
