#!/bin/sh
# program: links
# package: links
# verbs: PASV EPSV PORT EPRT
# does: list get
set -eu
case $VERB in
PASV) how="1 0" ;;
EPSV) how="1 1" ;;
PORT) how="0 0" ;;
EPRT) how="0 1" ;;
esac
options="-ftp.use-passive ${how% *} -ftp.use-eprt-epsv ${how#* }"
# shellcheck disable=SC2086 # two options
links $options -dump "$URL_WITH_LOGIN/" >listing
for file in small.bin second.bin; do
    # shellcheck disable=SC2086
    links $options -source "$URL_WITH_LOGIN/$file" >$file
done
