#!/usr/bin/env bash
# Request a TPU slice from Google Cloud, wait for it, and train on all its hosts:
#
#     scripts/launch/tpu_queued_resource.sh NAME ZONE ACCELERATOR CONFIG [--setting value …]
#     scripts/launch/tpu_queued_resource.sh bert us-west4-a v5litepod-16 configs/bert_large_v5e_16.py \
#         --output-dir /shared/runs/large --data.path /shared/data/train
#
# Rerun it to resume: an existing slice with this name is reused. /shared is a folder visible to all hosts, such as a
# bucket mounted with gcsfuse. RUNTIME is the VM image; SPOT=1 requests a preemptible slice.
set -euo pipefail

if [ "$#" -lt 4 ]; then
    echo "usage: $0 NAME ZONE ACCELERATOR CONFIG [--setting value …]" >&2
    exit 2
fi
name=$1 zone=$2 accelerator=$3
shift 3
runtime=${RUNTIME:-v2-alpha-tpuv5-lite}
repository=${REPOSITORY:-$(git remote get-url origin)}
tpus=(gcloud compute tpus)

state() {
    "${tpus[@]}" queued-resources describe "$name" --zone "$zone" --format 'value(state.state)' 2>/dev/null || true
}

if [ -z "$(state)" ]; then
    spot=()
    if [ "${SPOT:-0}" = 1 ]; then spot=(--spot); fi
    "${tpus[@]}" queued-resources create "$name" --node-id "$name" --zone "$zone" \
        --accelerator-type "$accelerator" --runtime-version "$runtime" "${spot[@]}"
fi
until [ "$(state)" = ACTIVE ]; do
    case "$(state)" in
        FAILED | SUSPENDED)
            echo "error: $name is $(state); delete it: gcloud compute tpus queued-resources delete $name --zone $zone" >&2
            exit 1
            ;;
    esac
    sleep "${POLL_SECONDS:-30}"
done

# Quoted again for the shell of the hosts.
printf -v arguments '%q ' "$@"
"${tpus[@]}" tpu-vm ssh "$name" --zone "$zone" --worker all --command "
    set -e
    [ -d mlm_jax ] || git clone '$repository' mlm_jax
    cd mlm_jax
    [ -d .venv ] || { python3 -m venv .venv && .venv/bin/pip install --quiet '.[tpu]'; }
    .venv/bin/python scripts/train.py $arguments"
