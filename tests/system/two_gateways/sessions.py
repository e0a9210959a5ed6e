"""Sessions of two downloads each, one after the other, until the file STOP is there.

sessions.py HOST PORT USER PASSWORD FILE CONTENT ACTIVE GATE STOP: prints a line for each session that is
lost, and at the end how many there were.

What no gateway can take over is kept from happening during a move: the file GATE is locked, for anybody who
wants the same, while a connection is set up, and from an announcement until it was used.
"""
import contextlib, fcntl, ftplib, os, sys

host, port, user, password, name, content, active, gate, stop = sys.argv[1:]
expected = open(content, "rb").read()


@contextlib.contextmanager
def gateway_stays():
    with open(gate) as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        yield


sessions = lost = 0
while not os.path.exists(stop):
    sessions += 1
    ftp = ftplib.FTP(timeout=15)
    done = "the connection"
    try:
        with gateway_stays():
            ftp.connect(host, int(port))
        ftp.login(user, password)
        ftp.set_pasv(active == "0")
        ftp.voidcmd("TYPE I")
        for number in range(2):
            done = f"download {number + 1}"
            with gateway_stays():
                data = ftp.transfercmd(f"RETR {name}")
            got = b""
            while piece := data.recv(65536):
                got += piece
            data.close()
            ftp.voidresp()
            if got != expected:
                raise ValueError(f"{len(got)} other bytes")
        done = "QUIT"
        ftp.quit()
    except Exception as error:
        lost += 1
        print(f"session {sessions}: {done}: {error!r}", flush=True)
print(f"{sessions} sessions, {lost} lost", flush=True)
