#!/usr/bin/zsh -f
# program: zsh
# package: zsh
# verbs: PASV PORT
set -eu
# The former has what the latter lacks.
zmodload zsh/net/tcp zsh/zftp
ZFTP_PREFS=P
[[ $VERB = PASV ]] || ZFTP_PREFS=S
ZFTP_TMOUT=$PATIENCE
zftp open $HOST:$PORT
zftp login $LOGIN $PASSWORD
zftp type I
zftp dir >listing
for file in small.bin second.bin; do
    zftp get $file >$file
done
zftp put $TARGET <$UPLOAD
zftp quit
