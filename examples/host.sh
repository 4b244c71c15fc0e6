#!/bin/sh
# Ask the host of this environment: `host.sh VERB [ARGUMENTS]`, such as `host.sh spawn '{"template": "worker", "name":
# "w1"}'`. Prints the answer, or ends with an error. Needs curl, jq, and netspace-client's bridge beside it:
#
#     python3 -m netspace_client.bridge --listen 127.0.0.1:8080 --raw host -- PROGRAM
set -eu
verb=${1:?usage: host.sh VERB [ARGUMENTS]}
answer=$(
    jq -cn --arg verb "$verb" --argjson arguments "${2:-"{}"}" '{v: 1, verb: $verb, arguments: $arguments}' |
        curl -sS --fail-with-body --max-time 60 --header 'Content-Type: application/vnd.netspace.host+json' \
            --data-binary @- "http://${HOST_BRIDGE:-127.0.0.1:8080}/host/"
) || {
    echo "no answer: $answer" >&2
    exit 1
}
printf '%s' "$answer" | jq -e 'if .error then .error.code + ": " + .error.text | halt_error else .answer end'
