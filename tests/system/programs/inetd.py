#!/usr/bin/python3
# Starts a program for each connection, with the connection as its standard input and output, as
# inetd does: inetd.py PROGRAM [ARGUMENT...]
import os
import signal
import socket
import subprocess
import sys

signal.signal(signal.SIGCHLD, signal.SIG_IGN)
listener = socket.create_server((os.environ["HOST"], int(os.environ["PORT"])), backlog=100)
while True:
    connection, _ = listener.accept()
    with connection:
        # Not its standard error: what a server says there must not reach its client.
        subprocess.Popen(sys.argv[1:], stdin=connection, stdout=connection)
