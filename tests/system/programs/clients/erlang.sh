#!/bin/sh
# program: erl
# package: erlang-ftp erlang-ssl
# verbs: PASV EPSV
set -eu
# Active, it loses what comes before it expects it, now and then.
exec erl -noinput -eval '
Env = fun(Name) -> os:getenv(Name) end,
Verb = Env("VERB"),
Extended = lists:prefix("E", Verb),
{ok, _} = application:ensure_all_started(ftp),
{ok, Host} = inet:parse_address(Env("HOST")),
{ok, Ftp} = ftp:open(Host, [{port, list_to_integer(Env("PORT"))}, {mode, passive}, {ipfamily, inet},
    {ftp_extension, Extended}, {timeout, 1000 * list_to_integer(Env("PATIENCE"))}]),
ok = ftp:user(Ftp, Env("LOGIN"), Env("PASSWORD")),
ok = ftp:type(Ftp, binary),
{ok, Listing} = ftp:ls(Ftp),
ok = file:write_file("listing", Listing),
ok = ftp:recv(Ftp, "small.bin"),
ok = ftp:recv(Ftp, "second.bin"),
ok = ftp:send(Ftp, Env("UPLOAD"), Env("TARGET")),
ftp:close(Ftp),
halt(0).
'
