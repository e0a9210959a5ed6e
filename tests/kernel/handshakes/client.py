"""A session with such a server: client.py KIND ADDRESS PORT COMMAND…

KIND: plain, tfo (the first command goes with the SYN), mptcp, md5, piped (all commands at once, behind the
login). The commands follow the login; GET is a download over PASV. Prints what happened.
"""
import re
import socket
import struct
import sys
import time

CONTENT = b"All there, in this order, and nothing else.\r\n"


def sign(sock, peer):
    """TCP_MD5SIG of linux/tcp.h."""
    address = struct.pack("=HH4s120x", socket.AF_INET, 0, socket.inet_aton(peer))
    key = b"secret"
    sock.setsockopt(socket.IPPROTO_TCP, 14, address + struct.pack("=BBHI80s", 0, 0, len(key), 0, key))


class Control:
    def __init__(self, kind, dial):
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262 if kind == "mptcp" else 0)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if kind == "md5":
            sign(sock, dial[0])
        if kind == "tfo":
            sock.sendto(b"USER lab\r\n", socket.MSG_FASTOPEN, dial)
        else:
            sock.settimeout(4)
            sock.connect(dial)
        sock.settimeout(4)
        self.sock, self.lines = sock, sock.makefile("rb")

    def send(self, *commands):
        self.sock.sendall("".join(c + "\r\n" for c in commands).encode())

    def expect(self, code):
        while True:
            line = self.lines.readline().decode()
            if not line:
                raise EOFError(f"the connection ended where {code} was expected")
            if re.match(r"\d{3} ", line):
                if not line.startswith(code):
                    raise ValueError(f"{line!r} where {code} was expected")
                return line

    def fetch(self, reply):
        found = [int(n) for n in re.findall(r"\d+", reply)[1:7]]
        to = (".".join(map(str, found[:4])), found[4] * 256 + found[5])
        with socket.create_connection(to, 4) as data:
            self.send("RETR file")
            self.expect("150")
            got = b"".join(iter(lambda: data.recv(4096), b""))
        if got != CONTENT:
            raise ValueError(f"got {got!r}")
        self.expect("226")


def main(kind, address, port, *commands):
    start = time.monotonic()
    control = Control(kind, (address, int(port)))
    control.expect("220")
    if kind != "tfo":
        control.send("USER lab")
    control.expect("331")
    control.send("PASS lab")
    control.expect("230")
    if kind == "piped":
        control.send("NOOP", "PASV")
        control.expect("200")
        control.fetch(control.expect("227"))
        commands = ()
    for command in commands:
        if command == "GET":
            control.send("PASV")
            control.fetch(control.expect("227"))
        else:
            control.send(command)
            print(control.expect("").rstrip(), flush=True)
    control.send("QUIT")
    control.expect("221")
    print(f"took {int((time.monotonic() - start) * 1000)} ms", flush=True)


main(*sys.argv[1:])
