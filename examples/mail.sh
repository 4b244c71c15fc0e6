#!/bin/sh
# Send and receive along links with amqp-tools: `mail.sh send PEER TEXT`, `mail.sh receive` (all that comes, until it is
# ended). Needs jq.
#
# These tools log in by password only, so the environment must be one of `broker: {passwords: [...]}`. They don't tell
# which exchange a message came from: whoever has to know its sender, or whether that is still declared, needs another
# client.
set -eu
card=/run/netspace/environment.json
has() { jq -er --arg name "${2-}" "$1" $card; }
login() {
    printf 'username:%s\npassword:%s\n' "$(has .broker.username)" "$(cat "$(has .broker.password_file)")"
}
# Not on the command line, where every process can read it.
secret=$(mktemp)
readers=
trap 'rm -f "$secret"; [ -z "$readers" ] || kill $readers 2>/dev/null' EXIT
trap 'exit 1' INT TERM
login >"$secret"
run() {
    tool=$1
    shift
    exec "$tool" --server "$(has .broker.host)" --port "$(has .broker.port)" --vhost "$(has .broker.vhost)" \
        --authfile "$secret" "$@"
}
case "$#-${1-}" in
    3-send)
        exchange=$(has '.peers[] | select(.as == $name or .to == $name).exchange' "$2") || {
            echo "no link to $2 is declared; $(has .name) may send to: $(has '[.peers[].to] | join(", ")')" >&2
            exit 1
        }
        (run amqp-publish --persistent --exchange "$exchange" --body "$3")
        ;;
    1-receive)
        # One message at a time from each queue; it is acknowledged when it was printed, at once: others print too.
        for queue in $(has '.queues[]'); do
            run amqp-consume --queue "$queue" --prefetch-count 1 -- sh -c 'text=$(cat) && printf "%s\n" "$text"' &
            readers="$readers $!"
        done
        wait
        ;;
    *)
        echo "usage: mail.sh send PEER TEXT | mail.sh receive" >&2
        exit 1
        ;;
esac
