#!/bin/sh
# program: elinks
# package: elinks
# verbs: PASV PORT
# does: list get
set -eu
mkdir -p .elinks
pasv=1
[ "$VERB" = PASV ] || pasv=0
echo "set protocol.ftp.use_pasv = $pasv" >.elinks/elinks.conf
elinks -config-dir .elinks -dump "$URL_WITH_LOGIN/" >listing
for file in small.bin second.bin; do
    elinks -config-dir .elinks -source "$URL_WITH_LOGIN/$file" >$file
done
