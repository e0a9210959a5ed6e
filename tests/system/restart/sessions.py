"""Sessions of DOWNLOADS downloads each (0: as many as there is time for), one after the other, until the
file STOP is there.

sessions.py HOST PORT USER PASSWORD FILE CONTENT ACTIVE DOWNLOADS STOP: prints a line for each session that is
lost, and at the end how many sessions and files there were.
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


host, port, user, password, name, content, active, downloads, stop = sys.argv[1:]
expected = open(content, "rb").read()
sessions = lost = files = 0
while not os.path.exists(stop):
    sessions += 1
    ftp = FTP(timeout=15)
    done = "the connection"
    try:
        ftp.connect(host, int(port))
        ftp.login(user, password)
        ftp.set_pasv(active == "0")
        number = 0
        while number < int(downloads) or (downloads == "0" and not os.path.exists(stop)):
            number += 1
            done = f"download {number}"
            got = io.BytesIO()
            ftp.retrbinary(f"RETR {name}", got.write)
            if got.getvalue() != expected:
                raise ValueError(f"{len(got.getvalue())} other bytes")
            files += 1
        done = "QUIT"
        ftp.quit()
    except Exception as error:
        lost += 1
        print(f"session {sessions}: {done}: {error!r} after {ftp.command} | {ftp.reply}", flush=True)
print(f"{sessions} sessions, {files} files, {lost} lost", flush=True)
