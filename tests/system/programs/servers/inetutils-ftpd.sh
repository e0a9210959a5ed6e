#!/bin/sh
# unpack: inetutils-ftpd
# login: anonymous lab@lab
set -eu
# It knows only the host's users: in a mount namespace of its own, these are the lab's.
mkdir -p etc
printf 'root:x:0:0::/:/bin/sh\nftp:x:65534:65534::%s:/bin/sh\n' "$ROOT" >etc/passwd
printf 'root:x:0:\nnogroup:x:65534:\n' >etc/group
printf '/bin/sh\n' >etc/shells
printf 'ftp %s/tcp\nftp-data 20/tcp\n' "$PORT" >etc/services
# It lists by the `ls` of its root.
for file in /bin/ls $(ldd /bin/ls | grep -o '/[^ ]*'); do
    cp -L --parents "$file" "$ROOT"
done
export ETC="$PWD/etc" FTPD="$UNPACKED/inetutils-ftpd/usr/sbin/ftpd"
exec unshare -m sh -c 'mount --bind "$ETC" /etc && exec "$PROGRAMS/inetd.py" "$FTPD" -a default'
