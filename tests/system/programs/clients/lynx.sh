#!/bin/sh
# program: lynx
# package: lynx
# verbs: EPSV PORT
# does: get
set -eu
passive=TRUE
[ "$VERB" = EPSV ] || passive=FALSE
echo "FTP_PASSIVE:$passive" >lynx.cfg
for file in small.bin second.bin; do
    lynx -cfg=lynx.cfg -source "$URL_WITH_LOGIN/$file" >$file
done
