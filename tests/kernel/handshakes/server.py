"""An FTP server that listens as it is told: server.py KIND ADDRESS PORT [PEER].

KIND: plain, tfo (Fast Open), mptcp, md5 (TCP-MD5 with PEER), padded (answers NOOP and PASV together, in
one segment of 1,348 bytes).
"""
import socket
import struct
import sys

CONTENT = b"All there, in this order, and nothing else.\r\n"


def sign(sock, peer):
    """TCP_MD5SIG of linux/tcp.h."""
    address = struct.pack("=HH4s120x", socket.AF_INET, 0, socket.inet_aton(peer))
    key = b"secret"
    sock.setsockopt(socket.IPPROTO_TCP, 14, address + struct.pack("=BBHI80s", 0, 0, len(key), 0, key))


def numbers(address):
    return ",".join(address[0].split(".") + [str(address[1] >> 8), str(address[1] & 255)])


def padded(line):
    head, end = b"200-", b"\r\n200 fine\r\n"
    lines = (b"y" * 78 + b"\r\n") * 20
    return head + lines[: 1348 - len(head + end + line)] + end + line


def session(kind, control):
    control.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    control.sendall(b"220 ready\r\n")
    data = None
    for line in control.makefile("rb"):
        line = line.decode("latin-1").rstrip("\r\n")
        print("read", repr(line), flush=True)
        verb = line.split(" ")[0]
        if verb == "USER":
            control.sendall(b"331 password, please\r\n")
        elif verb == "PASS":
            control.sendall(b"230 welcome\r\n")
        elif verb == "PASV":
            data = socket.socket()
            data.bind((control.getsockname()[0], 0))
            data.listen()
            reply = f"227 Entering Passive Mode ({numbers(data.getsockname())}).\r\n".encode()
            control.sendall(padded(reply) if kind == "padded" else reply)
        elif verb == "RETR":
            control.sendall(b"150 here it comes\r\n")
            with data.accept()[0] as stream:
                stream.sendall(CONTENT)
            control.sendall(b"226 done\r\n")
        elif verb in ("PORT", "EPRT"):
            control.sendall(b"200 fine\r\n")
        elif verb == "NOOP" and kind != "padded":
            control.sendall(b"200 fine\r\n")
        elif verb == "QUIT":
            control.sendall(b"221 bye\r\n")
            return
        elif verb != "NOOP":
            control.sendall(b"500 what?\r\n")


def main(kind, address, port, peer=None):
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262 if kind == "mptcp" else 0)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if kind == "tfo":
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 16)
    if kind == "md5":
        sign(listener, peer)
    listener.bind((address, int(port)))
    listener.listen()
    print("listening", flush=True)
    while True:
        control, _ = listener.accept()
        with control:
            try:
                session(kind, control)
            except OSError as error:
                print("error", error, flush=True)


main(*sys.argv[1:])
