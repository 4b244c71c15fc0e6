#!/bin/sh
# Send and receive along links with amqp-tools: `mail.sh send PEER TEXT`, `mail.sh receive`. Needs jq.
#
# These tools log in by password only, so the environment must be one of `broker: {passwords: [...]}`.
set -eu
card=/run/netspace/environment.json
has() { jq -er --arg name "${2-}" "$1" $card; }
login() {
    printf 'username:%s\npassword:%s\n' "$(has .broker.username)" "$(cat "$(has .broker.password_file)")"
}
# Not on the command line, where every process can read it.
secret=$(mktemp)
trap 'rm -f "$secret"' EXIT
login >"$secret"
run() {
    tool=$1
    shift
    "$tool" --server "$(has .broker.host)" --port "$(has .broker.port)" --vhost "$(has .broker.vhost)" \
        --authfile "$secret" "$@"
}
case $1 in
    send) run amqp-publish --persistent --exchange "$(has '.peers[] | select(.to == $name).exchange' "$2")" --body "$3" ;;
    receive) run amqp-consume --queue "$(has .mailbox)" --count 1 cat ;;
esac
