#!/usr/bin/python3
# package: python3-twisted
# python: twisted
# login: lab lab
import os

from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.credentials import IUsernamePassword
from twisted.cred.portal import IRealm, Portal
from twisted.internet import reactor
from twisted.protocols import ftp
from twisted.python import filepath
from zope.interface import implementer


@implementer(IRealm)
class Realm:
    def requestAvatar(self, avatar, mind, *interfaces):
        return interfaces[0], ftp.FTPShell(filepath.FilePath(os.environ["ROOT"])), lambda: None


@implementer(ICredentialsChecker)
class Everybody:
    credentialInterfaces = (IUsernamePassword,)

    def requestAvatarId(self, credentials):
        return credentials.username


portal = Portal(Realm(), [Everybody()])
reactor.listenTCP(int(os.environ["PORT"]), ftp.FTPFactory(portal), interface=os.environ["HOST"])
reactor.run()
