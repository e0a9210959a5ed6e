#!/bin/sh
# program: axel
# package: axel
# verbs: PASV
# does: get
set -eu
for file in small.bin second.bin; do
    axel -N -n 2 -T "$PATIENCE" -o $file "$URL_WITH_LOGIN/$file"
done
