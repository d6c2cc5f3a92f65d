#!/usr/bin/env bash
# One run on all hosts of a TPU pod slice, one process a host; JAX learns of the others from the TPU's metadata:
#   TPU=my-slice ZONE=us-central2-b experiments/launch/tpu_pod.sh CONFIG WORKDIR [--config.KEY=VALUE …]
#   TPU=my-slice ZONE=us-central2-b experiments/launch/tpu_pod.sh stop     # all save at one step and end
# Each host has this checkout in $CHECKOUT (~/jaxcnn) with `pip install -e '.[tpu,gcs]'` in its .venv. The workdir is an
# address, gs://BUCKET/RUN, or a folder that all hosts see. Run again, it goes on from the newest checkpoint.
set -euo pipefail

usage='usage: TPU=NAME ZONE=ZONE tpu_pod.sh CONFIG WORKDIR [--config.KEY=VALUE …] | stop'
: "${TPU:?$usage}" "${ZONE:?$usage}" "${1:?$usage}"
checkout=${CHECKOUT:-'$HOME/jaxcnn'}

everywhere() {
  gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="$1"
}

if [ "$1" = stop ]; then
  everywhere "kill -TERM \$(cat \$HOME/.jaxcnn-train.pid)"
  exit
fi
: "${2:?$usage}"
words=$(printf ' %q' train --config "$1" --workdir "$2" "${@:3}")
everywhere "cd $checkout && echo \$\$ >\$HOME/.jaxcnn-train.pid && exec .venv/bin/jaxcnn$words"
