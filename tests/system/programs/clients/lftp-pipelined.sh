#!/bin/sh
# program: lftp
# package: lftp
# verbs: PASV PORT
# does: list get put
set -eu
passive=on
[ "$VERB" = PASV ] || passive=off
exec lftp --norc -c "set cmd:fail-exit yes; set ftp:ssl-allow off; set ftp:fix-pasv-address off; \
    set ftp:auto-passive-mode off; set ftp:passive-mode $passive; set net:timeout $PATIENCE; \
    set net:max-retries 1; set net:reconnect-interval-base 1; set ftp:sync-mode off; debug 9; \
    open -u $LOGIN,$PASSWORD -p $PORT $HOST; ls >listing; get small.bin; get second.bin; put $UPLOAD -o $TARGET; close; get small.bin -o again; bye"
