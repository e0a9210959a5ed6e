#!/bin/sh
# program: wput
# package: wput
# verbs: PASV PORT
# does: put
set -eu
option=-d
[ "$VERB" = PASV ] || option=--port-mode
exec wput -d $option -t 1 --timeout="${PATIENCE}0" -B "$UPLOAD" "$URL_WITH_LOGIN/$TARGET"
