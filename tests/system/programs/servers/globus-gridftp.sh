#!/bin/sh
# unpack: globus-gridftp-server-progs
# login: anonymous lab@lab
set -eu
# It looks up its own name and address, first outside its root, then in it.
mkdir -p "$ROOT/etc"
export HOSTS="$ROOT/etc/hosts"
printf '%s %s\n' "$HOST" "$(uname -n)" >"$HOSTS"
export SERVER="$UNPACKED/globus-gridftp-server-progs/usr/sbin/globus-gridftp-server"
exec unshare -m sh -c 'mount --bind "$HOSTS" /etc/hosts && exec "$SERVER" "$@"' sh -exec "$SERVER" -s -aa \
    -anonymous-user nobody -anonymous-group nogroup -chroot-path "$ROOT" -home-dir / \
    -control-interface "$HOST" -port "$PORT" -data-interface "$HOST"
