#!/bin/sh
# program: ftpcopy
# package: ftpcopy
# verbs: PASV
# does: list get
set -eu
ftpls -u "$LOGIN" -p "$PASSWORD" "$HOST:$PORT" / >listing
exec ftpcopy -u "$LOGIN" -p "$PASSWORD" -T "$PATIENCE" -l 3 -n --max-depth=1 --tries=1 "$HOST:$PORT" / .
