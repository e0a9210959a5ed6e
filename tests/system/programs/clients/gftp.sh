#!/bin/sh
# program: gftp-text
# package: gftp-text
# verbs: EPSV
set -eu
# Its active mode binds to the server's address. It keeps listings in its user's home, whatever HOME
# says: here, that is the working directory.
home=$(getent passwd "$(id -u)" | cut -d: -f6)
unshare -m sh -c 'mount --bind "$PWD" "$0" && exec gftp-text "$URL_WITH_LOGIN/"' "$home" <<END | tee said
set passive_transfer=1
set ignore_pasv_address=0
ls
get small.bin
get second.bin
cd up
put $UPLOAD
quit
END
