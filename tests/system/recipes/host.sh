# A host of a recipe's: a file system of its own over the machine's, and nothing that outlives it.
#
#   host.sh TOP FTPALG SYSTEMCTL UNIT TREE…
#
# Runs in a network namespace and a mount namespace of its own. Each TREE is a package that was unpacked, or
# files that the host has from the start.
set -eu
top=$1 ftpalg=$2 player=$3 unit=$4
shift 4

mkdir -p "$top"
mount -t tmpfs -o mode=755 recipe "$top"
for part in etc usr var srv opt; do
    mkdir -p "$top/$part" "$top/work/$part"
done
for tree; do
    for part in etc usr var srv opt; do
        [ ! -d "$tree/$part" ] || cp -a "$tree/$part/." "$top/$part/"
    done
    for part in lib sbin bin; do
        [ ! -d "$tree/$part" ] || { mkdir -p "$top/usr/$part" && cp -a "$tree/$part/." "$top/usr/$part/"; }
    done
done
# What the packages' own scripts would do.
[ ! -d "$top/usr/share/ufw" ] || {
    cp "$top"/usr/share/ufw/*.rules "$top"/usr/share/ufw/*.init "$top/usr/share/ufw/ufw.conf" "$top/etc/ufw/"
    chmod 640 "$top"/etc/ufw/*.rules "$top"/etc/ufw/*.init
}
policy=$top/usr/share/polkit-1/actions/org.fedoraproject.FirewallD1
[ ! -e "$policy.server.policy.choice" ] || ln -s "${policy##*/}.server.policy.choice" "$policy.policy"
# Files of the host's belong to root, whoever checked them out.
chown -R 0:0 "$top/etc" "$top/srv"
[ ! -e "$top/etc/proftpd/users" ] || chmod 600 "$top/etc/proftpd/users"
mkdir -p "$top/usr/local/sbin" "$top/etc/systemd/system"
for place in usr/local/sbin usr/sbin; do
    mkdir -p "$top/$place"
    ln -s "$ftpalg" "$top/$place/ftpalg"
done
# What today's distributions mean by `iptables`, whatever the machine has chosen.
for name in iptables ip6tables; do
    for suffix in "" -save -restore; do
        ln -s /usr/sbin/xtables-nft-multi "$top/usr/local/sbin/$name$suffix"
    done
done
for name in systemctl journalctl; do
    install -m 755 "$player" "$top/usr/local/sbin/$name"
done
printf '#!/bin/sh\nexec "$@"\n' >"$top/usr/local/sbin/sudo"
chmod 755 "$top/usr/local/sbin/sudo"
install -m 644 "$unit" "$top/etc/systemd/system/ftpalg.service"

for part in etc usr var srv opt; do
    mount -t overlay recipe -o "lowerdir=/$part,upperdir=$top/$part,workdir=$top/work/$part" "/$part"
done
mount -t tmpfs -o mode=755 recipe /run
# No name server is on these networks: who asks for a name is to know at once.
rm -f /etc/resolv.conf
: >/etc/resolv.conf
mkdir -p /run/lock /run/ftpalg
chmod 700 /run/ftpalg
echo ready
exec sleep infinity
