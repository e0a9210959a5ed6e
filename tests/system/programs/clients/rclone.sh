#!/bin/sh
# program: rclone
# package: rclone
# verbs: PASV EPSV
# does: list get put
set -eu
epsv=false
[ "$VERB" = EPSV ] || epsv=true
export RCLONE_CONFIG="$PWD/rclone.conf"
cat >rclone.conf <<END
[lab]
type = ftp
host = $HOST
port = $PORT
user = $LOGIN
pass = $(rclone obscure "$PASSWORD")
disable_epsv = $epsv
END
set -- --retries 1 --low-level-retries 1 --timeout "${PATIENCE}s" -vv --transfers 1 --checkers 1
rclone "$@" lsf lab: >listing
rclone "$@" copy --include /small.bin --include /second.bin lab: .
exec rclone "$@" copyto --ignore-times "$UPLOAD" "lab:$TARGET"
