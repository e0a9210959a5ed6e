"""Sessions of three downloads each, one after the other, until the file STOP is there.

sessions.py HOST PORT USER PASSWORD FILE CONTENT ACTIVE STOP: prints a line for each session that is lost,
and at the end how many there were.
"""
import ftplib, io, os, sys


class FTP(ftplib.FTP):
    """Remembers the last command and the last reply."""

    command = reply = ""

    def putcmd(self, line):
        self.command = line
        super().putcmd(line)

    def getresp(self):
        self.reply = super().getresp()
        return self.reply


host, port, user, password, name, content, active, stop = sys.argv[1:]
expected = open(content, "rb").read()
sessions = lost = 0
while not os.path.exists(stop):
    sessions += 1
    ftp = FTP(timeout=15)
    done = "the connection"
    try:
        ftp.connect(host, int(port))
        ftp.login(user, password)
        ftp.set_pasv(active == "0")
        for number in range(3):
            done = f"download {number + 1}"
            got = io.BytesIO()
            ftp.retrbinary(f"RETR {name}", got.write)
            if got.getvalue() != expected:
                raise ValueError(f"{len(got.getvalue())} other bytes")
        done = "QUIT"
        ftp.quit()
    except Exception as error:
        lost += 1
        print(f"session {sessions}: {done}: {error!r} after {ftp.command} | {ftp.reply}", flush=True)
print(f"{sessions} sessions, {lost} lost", flush=True)
