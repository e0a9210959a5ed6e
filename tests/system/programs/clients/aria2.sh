#!/bin/sh
# program: aria2c
# package: aria2
# verbs: PASV PORT
# does: get
set -eu
pasv=true
[ "$VERB" = PASV ] || pasv=false
exec aria2c --no-conf --ftp-user="$LOGIN" --ftp-passwd="$PASSWORD" --ftp-pasv=$pasv -Z \
    --connect-timeout="$PATIENCE" --timeout="$PATIENCE" --max-tries=1 --enable-dht=false \
    "$URL/small.bin" "$URL/second.bin"
