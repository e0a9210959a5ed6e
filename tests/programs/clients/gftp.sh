#!/bin/sh
# program: gftp-text
# package: gftp-text
# verbs: EPSV
set -eu
# Its active mode binds to the server's address.
gftp-text "$URL_WITH_LOGIN/" <<END | tee said
set passive_transfer=1
set ignore_pasv_address=0
ls
get small.bin
get second.bin
cd up
put $UPLOAD
quit
END
