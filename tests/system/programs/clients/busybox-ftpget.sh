#!/bin/sh
# program: busybox
# package: busybox
# verbs: EPSV
# does: get put
set -eu
for file in small.bin second.bin; do
    busybox ftpget -v -u "$LOGIN" -p "$PASSWORD" -P "$PORT" "$HOST" $file $file
done
exec busybox ftpput -v -u "$LOGIN" -p "$PASSWORD" -P "$PORT" "$HOST" "$TARGET" "$UPLOAD"
