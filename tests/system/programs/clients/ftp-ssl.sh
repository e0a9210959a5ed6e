#!/bin/sh
# program: ftp-ssl
# package: ftp-ssl
# verbs: PASV PORT
set -eu
mode=-p
[ "$VERB" = PASV ] || mode=
ftp-ssl -z nossl -v -d -i -n -e $mode <<END | tee said
open $HOST $PORT
user $LOGIN $PASSWORD
binary
ls . listing
get small.bin
get second.bin
put $UPLOAD $TARGET
bye
END
