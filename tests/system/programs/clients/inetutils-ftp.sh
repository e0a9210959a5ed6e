#!/bin/sh
# program: inetutils-ftp
# package: inetutils-ftp
# verbs: PASV PORT
set -eu
mode=-p
[ "$VERB" = PASV ] || mode=-A
inetutils-ftp -v -d -i -n -e $mode <<END | tee said
open $HOST $PORT
user $LOGIN $PASSWORD
binary
ls . listing
get small.bin
get second.bin
put $UPLOAD $TARGET
bye
END
