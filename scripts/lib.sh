# shellcheck shell=sh
# Shared by the scripts beside it. To be sourced from the repository's root, under `set -eu`.

SERVERS=.cache/servers
PROGRAMS=.cache/programs

say() {
    printf '==> %s\n' "$*"
}

die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 2
}

must_be_root() {
    [ "$(id -u)" = 0 ] || die "network namespaces need root: run it with sudo"
}

# Checks for what building takes, before anything is installed: cargo, new enough, and a C compiler, by which
# Rust links.
must_have_rust() {
    if ! command -v cargo >/dev/null; then
        # What sudo took out of the PATH.
        for home in "${CARGO_HOME:-}" "${HOME:-/root}/.cargo" "$(user_home)/.cargo"; do
            if [ -x "$home/bin/cargo" ]; then
                PATH=$home/bin:$PATH
                # Where that user's toolchains are.
                export PATH RUSTUP_HOME="${RUSTUP_HOME:-${home%/.cargo}/.rustup}"
                break
            fi
        done
    fi
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
    how="https://rustup.rs, or (from Debian 13 and Ubuntu 24.04 on) \`apt-get install rustup && rustup default stable\`"
    found=$(cargo --version 2>/dev/null) || die "no cargo found, and Rust $wanted or newer is needed: $how"
    version=${found#cargo }
    is_at_least "$wanted" "${version%% *}" || die "$found is too old, Rust $wanted or newer is needed: $how"
    command -v cc >/dev/null || die "no C compiler (cc) found, by which Rust links: apt-get install gcc libc6-dev"
}

# user_home: the home of the user who called sudo.
user_home() {
    getent passwd "${SUDO_USER:-root}" 2>/dev/null | cut -d: -f6
}

# is_at_least WANTED VERSION: compares A.B with A.B.C.
is_at_least() {
    [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1)" = "$1" ]
}

# version: ours.
version() {
    sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1
}

# source_date: when the sources are from, in seconds since 1970, for what carries a date.
source_date() {
    echo "${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date -r Cargo.toml +%s)}"
}

# build_release [ARGUMENT…]: builds the program so that the same sources make the same bytes, wherever they are.
build_release() {
    say "building ftpalg"
    # shellcheck disable=SC2086 # a list of words
    flags=$(printf '%s\037' ${RUSTFLAGS:-} "--remap-path-prefix=$PWD=ftpalg" "--remap-path-prefix=$(cargo_home)=cargo")
    SOURCE_DATE_EPOCH=$(source_date) CARGO_ENCODED_RUSTFLAGS=${flags%?} cargo build --release --locked "$@"
}

# Where cargo keeps what it has downloaded.
cargo_home() {
    echo "${CARGO_HOME:-${HOME:-/root}/.cargo}"
}

# install_cargo_deb: into .cache, unless it is there. It isn't optimized: it runs for seconds.
install_cargo_deb() {
    [ -x .cache/cargo/bin/cargo-deb ] || install_crate cargo-deb@3.8.0 --no-default-features
}

# install_crate NAME@VERSION [ARGUMENT…]: a program that a crate has, into .cache/cargo/bin.
install_crate() {
    say "installing $1 into .cache"
    CARGO_PROFILE_RELEASE_OPT_LEVEL=0 CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_DEBUG=0 \
        cargo install --quiet --locked --root .cache/cargo "$@"
}

# third_party_licenses: the crates that the program is linked from, their licences, and their notices, each once.
third_party_licenses() {
    cat <<EOT
ftpalg is linked from these crates. Behind each is the licence that its authors give it. Their notices follow.

EOT
    crates=$(cargo tree --locked --edges normal --prefix none --format '{p} {l}' |
        grep -v '^ftpalg ' | sed 's/ (proc-macro)//; s/ (\*)$//' | sort -u)
    echo "$crates"
    registry=$(cargo_home)/registry/src
    echo "$crates" | while read -r name version _; do
        for notice in "$registry"/*/"$name-${version#v}"/*; do
            case ${notice##*/} in
            [Ll][Ii][Cc][Ee][Nn][SsCc][Ee]* | COPYING* | COPYRIGHT* | NOTICE*) [ -f "$notice" ] && sha256sum "$notice" ;;
            esac
        done
    done | sort -u -k 1,1 | while read -r _ notice; do
        directory=${notice%/*}
        printf '\n---- %s, %s\n\n' "${directory##*/}" "${notice##*/}"
        cat "$notice"
    done
}

# apt_install PACKAGE…
apt_install() {
    command -v apt-get >/dev/null || die "needs these packages, and apt-get isn't here to install them: $*"
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends --no-upgrade \
        -o DPkg::Lock::Timeout=300 "$@" >/dev/null
}

# Updates apt's lists, once for each run of a script.
apt_update() {
    if [ -z "${apt_updated:-}" ]; then
        apt-get update -qq -o DPkg::Lock::Timeout=300
        apt_updated=yes
    fi
}

# have PROGRAM: whether the system itself has it (not something in a user's PATH).
have() {
    for directory in /usr/sbin /usr/bin /sbin /bin; do
        [ -x "$directory/$1" ] && return 0
    done
    return 1
}

# The programs that the tests run.
# shellcheck disable=SC2034 # for scripts/test
LAB_TOOLS="ip nsenter iptables-nft iptables-legacy nft conntrack tcpdump curl lftp wget tnftp \
ncftpget python3 pyftpdlib pyopenssl openssl systemd-analyze tshark groff script \
python3-dbus python3-gi dbus-daemon pkcheck dpkg-shlibdeps pyyaml"

# install_tools PROGRAM…: installs what is missing.
install_tools() {
    missing=
    for program; do
        case $program in
        pyftpdlib) have python3 && /usr/bin/python3 -c 'import pyftpdlib' 2>/dev/null && continue ;;
        pyopenssl) have python3 && /usr/bin/python3 -c 'import OpenSSL' 2>/dev/null && continue ;;
        python3-dbus) have python3 && /usr/bin/python3 -c 'import dbus' 2>/dev/null && continue ;;
        python3-gi) have python3 && /usr/bin/python3 -c 'import gi' 2>/dev/null && continue ;;
        pyyaml) have python3 && /usr/bin/python3 -c 'import yaml' 2>/dev/null && continue ;;
        *) have "$program" && continue ;;
        esac
        case $program in
        ip) package=iproute2 ;;
        nsenter) package=util-linux ;;
        iptables-nft | iptables-legacy) package=iptables ;;
        nft) package=nftables ;;
        ncftpget) package=ncftp ;;
        groff) package=groff-base ;;
        script) package=bsdutils ;;
        systemd-analyze) package=systemd ;;
        pkcheck) package=polkitd ;;
        dpkg-shlibdeps) package=dpkg-dev ;;
        pyftpdlib) package=python3-pyftpdlib ;;
        pyopenssl) package=python3-openssl ;;
        pyyaml) package=python3-yaml ;;
        *) package=$program ;;
        esac
        missing="$missing $package"
    done
    # shellcheck disable=SC2086 # a list of words
    if [ -n "$missing" ]; then
        say "installing$missing"
        apt_update
        apt_install $missing
    fi
}

# Unpacks servers and firewalls without installing them: the FTP servers' packages exclude each other, and
# all start services. Only the libraries that they need are installed.
unpack_servers() {
    for package in vsftpd proftpd-core proftpd-mod-crypto pure-ftpd pure-ftpd-common keepalived conntrackd \
        redis-tools prometheus tayga ufw firewalld python3-firewall python3-nftables haproxy \
        nginx libnginx-mod-stream libnginx-mod-stream-js $(said_by unpack tests/system/programs/*/*); do
        unpack "$package"
    done
}

# unpack PACKAGE: into a directory of its own.
unpack() {
    [ -e "$SERVERS/$1/.complete" ] && libraries_there "$SERVERS/$1" && return
    say "unpacking $1 into $SERVERS"
    apt_update
    rm -rf "${SERVERS:?}/$1" "$SERVERS/download"
    mkdir -p "$SERVERS/download"
    # As a user of its own, apt couldn't write here.
    (cd "$SERVERS/download" && apt-get download -qq -o APT::Sandbox::User=root "$1")
    dpkg -x "$SERVERS/download/"*.deb "$SERVERS/$1"
    # Modules of nginx aren't libraries, and neither are scripts for browsers.
    libraries=$(dpkg-deb -f "$SERVERS/download/"*.deb Depends | tr ',' '\n' |
        sed -n '/libnginx-/d; /libjs-/d; s/^ *\(\(lib\|lua-\)[^ (|]*\).*/\1/p')
    # shellcheck disable=SC2086 # a list of words
    [ -z "$libraries" ] || apt_install $libraries
    rm -rf "$SERVERS/download"
    # The server itself is in the package of the tools. That of the server has this link, and a service.
    [ "$1" != redis-tools ] || ln -s redis-check-rdb "$SERVERS/$1/usr/bin/redis-server"
    touch "$SERVERS/$1/.complete"
}

# said_by KEY SCRIPT…: what is behind `KEY: ` at the scripts' tops (see testkit/src/lab/programs.rs).
said_by() {
    key=$1
    shift
    sed -n "s/^\(#\|\/\/\) $key: //p" "$@" | tr ' ' '\n' | sort -u
}

# Installs what the scripts in tests/system/programs need. A program that can't be had here is left out; the
# tests say so.
install_programs() {
    wanted=
    for script in tests/system/programs/*/*.*; do
        there=yes
        for program in $(said_by program "$script"); do
            have "$program" || there=
        done
        for module in $(said_by python "$script"); do
            # Not in the scripts' own directory.
            have python3 && (cd / && /usr/bin/python3 -c "import $module" 2>/dev/null) || there=
        done
        [ -n "$there" ] || wanted="$wanted $(said_by package "$script" | tr '\n' ' ')"
    done
    have npm || wanted="$wanted nodejs npm"
    [ -z "$wanted" ] || apt_update
    available=
    for package in $wanted; do
        if apt-cache show "$package" >/dev/null 2>&1; then
            available="$available $package"
        else
            say "left out, since the distribution hasn't got it: $package"
        fi
    done
    if [ -n "$available" ]; then
        say "installing$available"
        # shellcheck disable=SC2086 # a list of words
        apt_install $available || for package in $available; do
            apt_install "$package" || say "left out, since it can't be installed: $package"
        done
    fi
    if have npm && ! cmp -s tests/system/programs/package-lock.json "$PROGRAMS/package-lock.json"; then
        say "installing what tests/system/programs/package.json lists into $PROGRAMS"
        mkdir -p "$PROGRAMS"
        cp tests/system/programs/package.json "$PROGRAMS"
        cp tests/system/programs/package-lock.json "$PROGRAMS/package-lock.json"
        if ! npm ci --prefix "$PROGRAMS" --no-audit --no-fund --ignore-scripts --silent; then
            say "left out, since npm can't install them: the programs of tests/system/programs/package.json"
            rm "$PROGRAMS/package-lock.json"
        fi
    fi
}

# libraries_there DIRECTORY: whether the programs below it find their shared libraries.
libraries_there() {
    for program in "$1"/usr/sbin/* "$1"/usr/bin/*; do
        if ldd "$program" 2>/dev/null | grep -q 'not found'; then
            return 1
        fi
    done
}

# Deletes what is left of networks whose process is gone: of tests (namespaces `fa<pid>x<number>-<host>`,
# directories `fa<pid>x<number>`; testkit/src/lab/net.rs makes them) and of the demo
# (`ftpalg-demo<pid>-<host>`). Says so of each.
remove_leftovers() {
    for path in /run/netns/fa[0-9]*x[0-9]*-* "${TMPDIR:-/tmp}"/fa[0-9]*x[0-9]* \
        /run/netns/ftpalg-demo[0-9]*-*; do
        [ -e "$path" ] || continue
        name=${path##*/}
        case $name in
        ftpalg-demo*) pid=${name#ftpalg-demo} pid=${pid%%-*} program='sh$' ;;
        *) pid=${name#fa} pid=${pid%%x*} program=/deps/ ;;
        esac
        case $pid in *[!0-9]*) continue ;; esac
        # Not there any more, or another program by now.
        if readlink "/proc/$pid/exe" 2>/dev/null | grep -q "$program"; then
            continue
        fi
        say "removing $path, left over from a run that is gone"
        case $path in
        /run/netns/*) remove_namespace "$name" ;;
        *) rm -rf "$path" ;;
        esac
    done
}

# remove_namespace NAME: ends its processes and deletes it.
remove_namespace() {
    for _ in 1 2 3 4 5; do
        pids=$(ip netns pids "$1" 2>/dev/null) || return 0
        [ -n "$pids" ] || break
        # shellcheck disable=SC2086 # a list of numbers
        kill -9 $pids 2>/dev/null || true
    done
    ip netns del "$1" 2>/dev/null || true
}

# summarize FILE: what `cargo test` said, in one line: `502 passed, 1 failed: system::urgent::vsftpd_inside`.
# A test program that ended without a result is named, too.
summarize() {
    awk '
    function ended() {
        if (running != "") unfinished = unfinished ", " running " (no result)"
    }
    # Of `Running tests/x.rs (target/debug/deps/x-0123456789abcdef)`: x.
    /^ +Running .*\(.*\)$/ {
        ended()
        running = $NF
        sub(/.*\//, "", running)
        sub(/(-[0-9a-f]+)?\)$/, "", running)
    }
    /^ +Doc-tests / { ended(); running = "doc" }
    # The list of names comes behind what they printed, and has no empty line in it.
    /^failures:$/ { names = ""; listing = 1; next }
    /^$/ { listing = 0 }
    listing && /^    / {
        sub(/^ +/, "")
        names = names ", " (running == "" ? "" : running "::") $0
    }
    /^test result: / {
        for (i = 2; i <= NF; i++) {
            if ($i == "passed;") passed += $(i - 1)
            if ($i == "failed;") failed += $(i - 1)
        }
        if ($3 == "FAILED.") failures = failures names
        names = running = ""
    }
    END {
        ended()
        failures = substr(failures unfinished, 3)
        if (passed + failed == 0 && failures == "") print "no test ran"
        else print passed + 0 " passed, " failed + 0 " failed" (failures == "" ? "" : ": " failures)
    }' "$1"
}

# reasons FILE: the beginning of what each failed test said as it failed. Without this it is far from the
# end of a long output, behind logs of programs.
reasons() {
    awk '
    /^---- .* stdout ----$/ { name = $2; left = 0 }
    /^stack backtrace:$/ || /^note: run with / { left = 0 }
    /^test result: / { name = ""; left = 0 }
    name != "" && /^thread .* panicked at / {
        print name ": " $0
        left = 40
        next
    }
    left > 0 { print "    " substr($0, 1, 200); left-- }' "$1"
}
