#!/usr/bin/python3
# package: python3-twisted
# python: twisted
# verbs: PASV PORT
import os
import sys

from twisted.internet import reactor
from twisted.internet.defer import inlineCallbacks
from twisted.internet.protocol import ClientCreator, Protocol
from twisted.protocols.ftp import FTPClient
from twisted.protocols.basic import FileSender

env = os.environ


class Into(Protocol):
    def __init__(self, name):
        self.file = open(name, "wb")

    def dataReceived(self, data):
        self.file.write(data)

    def connectionLost(self, reason):
        self.file.close()


@inlineCallbacks
def main():
    creator = ClientCreator(reactor, FTPClient, env["LOGIN"], env["PASSWORD"],
                            passive=env["VERB"] == "PASV")
    ftp = yield creator.connectTCP(env["HOST"], int(env["PORT"]), timeout=int(env["PATIENCE"]))
    yield ftp.list(".", Into("listing"))
    yield ftp.retrieveFile("small.bin", Into("small.bin"))
    yield ftp.retrieveFile("second.bin", Into("second.bin"))
    opened, stored = ftp.storeFile(env["TARGET"])
    sender = yield opened
    with open(env["UPLOAD"], "rb") as file:
        yield FileSender().beginFileTransfer(file, sender.transport)
    sender.finish()
    yield stored
    yield ftp.quit()


def failed(failure):
    failure.printTraceback()
    global code
    code = 1


code = 0
main().addErrback(failed).addBoth(lambda _: reactor.stop())
reactor.run()
sys.exit(code)
