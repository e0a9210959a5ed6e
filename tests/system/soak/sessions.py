"""Sessions of TRANSFERS transfers each (0: as many as there is time for), one after the other, until the
file STOP is there. Downloads and uploads take turns; now and then there is a listing.

sessions.py HOST PORT USER PASSWORD ROOT FILE UPLOAD VERB TRANSFERS STOP: ROOT is where the server's files are.
Prints a line for each session that is lost, and at the end how many sessions and files there were.
"""
import ftplib, io, os, random, sys, time

host, port, user, password, root, name, upload, verb, transfers, stop = sys.argv[1:]
expected = open(os.path.join(root, name), "rb").read()


class FTP(ftplib.FTP):
    """Announces with VERB, and remembers the last command and the last reply."""

    command = reply = ""

    def putcmd(self, line):
        self.command = line
        super().putcmd(line)

    def getresp(self):
        self.reply = super().getresp()
        return self.reply

    def makepasv(self):
        if verb == "EPSV":
            return ftplib.parse229(self.sendcmd("EPSV"), self.sock.getpeername())
        return super().makepasv()

    def sendport(self, host, port):
        return self.sendeprt(host, port) if verb == "EPRT" else super().sendport(host, port)


def transfer(ftp, number):
    """Returns how many files there were."""
    if number % 8 == 4:
        if name not in "\n".join(ftp.nlst()):
            raise ValueError("the listing is incomplete")
        return 0
    if number % 2:
        got = io.BytesIO()
        ftp.retrbinary(f"RETR {name}", got.write)
        if got.getvalue() != expected:
            raise ValueError(f"{len(got.getvalue())} other bytes")
    else:
        content = random.randbytes(random.randrange(1, 60_000))
        ftp.storbinary(f"STOR {upload}", io.BytesIO(content))
        got = open(os.path.join(root, upload), "rb").read()
        if got != content:
            raise ValueError(f"{len(got)} other bytes in place of {len(content)}")
    return 1


sessions = lost = files = 0
while not os.path.exists(stop):
    sessions += 1
    ftp = FTP(timeout=30)
    done = "the connection"
    try:
        ftp.connect(host, int(port))
        ftp.login(user, password)
        ftp.set_pasv(verb in ("PASV", "EPSV"))
        ftp.voidcmd("TYPE I")
        number = 0
        while number < int(transfers) or (transfers == "0" and not os.path.exists(stop)):
            number += 1
            done = f"transfer {number}"
            files += transfer(ftp, number)
        done = "QUIT"
        ftp.quit()
    except Exception as error:
        lost += 1
        print(f"{time.strftime('%FT%TZ', time.gmtime())}, session {sessions}: {done}: {error!r} after {ftp.command} | {ftp.reply}", flush=True)
print(f"{sessions} sessions, {files} files, {lost} lost", flush=True)
