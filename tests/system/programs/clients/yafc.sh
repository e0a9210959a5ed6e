#!/bin/sh
# program: yafc
# package: yafc
# verbs: PASV PORT
set -eu
passive=true
[ "$VERB" = PASV ] || passive=false
cat >yafcrc <<END
use_passive_mode $passive
autologin yes
END
yafc -d -v -q -r yafcrc -W . -t=trace "$URL_WITH_LOGIN" <<END | tee said
ls
get small.bin
get second.bin
put -o $TARGET $UPLOAD
close
quit
END
