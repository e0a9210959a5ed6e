#!/bin/sh
# program: w3m
# package: w3m
# verbs: PASV
# does: list get
set -eu
w3m -dump "$URL_WITH_LOGIN/" >listing
for file in small.bin second.bin; do
    w3m -dump_source "$URL_WITH_LOGIN/$file" >$file
done
