#!/usr/bin/python3
"""Plays systemctl and journalctl on the hosts of the recipes: does what unit files say, as far as recipes need it.

Their sandboxes aren't played: tests/system/service.rs looks after that of ftpalg.
"""
import os
import select
import shlex
import signal
import socket
import subprocess
import sys
import time

RUN = "/run/units"
PLACES = ["/etc/systemd/system", "/usr/lib/systemd/system"]
LIMIT = 15


def fail(text):
    print(text, file=sys.stderr)
    sys.exit(1)


class Unit:
    def __init__(self, name):
        self.name = name.removesuffix(".service")
        self.keys = {}
        for place in PLACES:
            path = f"{place}/{self.name}.service"
            if os.path.exists(path):
                break
        else:
            fail(f"Unit {self.name}.service could not be found.")
        text = open(path).read().replace("\\\n", " ")
        for line in text.splitlines():
            key, equals, value = line.partition("=")
            if equals and not line.startswith(("#", ";", "[")):
                self.keys.setdefault(key.strip(), []).append(value.strip())
        os.makedirs(RUN, exist_ok=True)
        self.file = f"{RUN}/{self.name}"
        self.log = f"{RUN}/{self.name}.log"

    def one(self, key, default=""):
        return self.keys.get(key, [default])[-1]

    def environment(self):
        environment = dict(os.environ)
        for words in self.keys.get("Environment", []):
            for word in shlex.split(words):
                key, _, value = word.partition("=")
                environment[key] = value
        for path in self.keys.get("EnvironmentFile", []):
            path = path.lstrip("-")
            if os.path.exists(path):
                for line in open(path):
                    key, equals, value = line.strip().partition("=")
                    if equals and not key.startswith("#"):
                        environment[key] = "".join(shlex.split(value)[:1])
        return environment

    def words(self, line, environment):
        out = []
        for word in shlex.split(line.lstrip("-+!@:")):
            if word.startswith("$") and word[1:].strip("{}").isidentifier():
                value = environment.get(word[1:].strip("{}"), "")
                out += [value] if word[1] == "{" else shlex.split(value)
            else:
                out.append(word)
        return out

    def commands(self, key, environment):
        for line in self.keys.get(key, []):
            if not line:
                continue
            with open(self.log, "ab") as log:
                done = subprocess.run(self.words(line, environment), env=environment, stdin=subprocess.DEVNULL,
                                      stdout=log, stderr=log, timeout=LIMIT)
            if done.returncode and not line.startswith("-"):
                fail(f"{self.name}: {line}: exit code {done.returncode}\n{open(self.log).read()}")

    def pid(self):
        try:
            pid = int(open(self.file).read())
            state = open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0]
            return pid if state not in "ZX" else None
        except (OSError, ValueError):
            return None

    def active(self):
        if self.one("Type") == "oneshot":
            return os.path.exists(self.file)
        return self.pid() is not None

    def start(self):
        if self.active():
            return
        environment = self.environment()
        for key, below in (("RuntimeDirectory", "/run"), ("LogsDirectory", "/var/log"), ("StateDirectory", "/var/lib")):
            for name in self.one(key).split():
                os.makedirs(f"{below}/{name}", mode=0o755, exist_ok=True)
        self.commands("ExecStartPre", environment)
        kind = self.one("Type", "simple")
        if kind == "oneshot":
            self.commands("ExecStart", environment)
            open(self.file, "w").write("0")
            return
        if kind == "dbus" and not os.path.exists("/run/dbus/system_bus_socket"):
            os.makedirs("/run/dbus", exist_ok=True)
            subprocess.run(["dbus-daemon", "--system", "--fork", "--nopidfile"], check=True, timeout=LIMIT)
        notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        if kind == "notify":
            path = f"{RUN}/{self.name}.notify"
            if os.path.exists(path):
                os.unlink(path)
            notify.bind(path)
            environment["NOTIFY_SOCKET"] = path
        log = open(self.log, "ab")
        process = subprocess.Popen(self.words(self.one("ExecStart"), environment), env=environment, cwd="/",
                                   stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        pid = process.pid
        deadline = time.monotonic() + LIMIT
        if kind == "forking":
            process.wait(LIMIT)
            file = self.one("PIDFile")
            while not os.path.exists(file) and time.monotonic() < deadline:
                time.sleep(0.01)
            pid = int(open(file).read())
        elif kind == "notify":
            notify.settimeout(0.05)
            ready = False
            while not ready:
                try:
                    ready = b"READY=1" in notify.recv(4096)
                except TimeoutError:
                    if process.poll() is not None or time.monotonic() > deadline:
                        fail(f"{self.name} didn't start:\n{open(self.log).read()}")
        elif kind == "dbus":
            while subprocess.run(["busctl", "--quiet", "status", self.one("BusName")], stdout=subprocess.DEVNULL,
                                 stderr=subprocess.DEVNULL).returncode:
                if process.poll() is not None or time.monotonic() > deadline:
                    fail(f"{self.name} didn't start:\n{open(self.log).read()}")
                time.sleep(0.05)
        open(self.file, "w").write(str(pid))

    def ends(self, number):
        pid = self.pid()
        if pid:
            # It is over when all of its threads are, and with them its sockets.
            process = os.pidfd_open(pid)
            os.kill(pid, number)
            if not select.select([process], [], [], LIMIT)[0]:
                fail(f"{self.name} doesn't end")
        if os.path.exists(self.file):
            os.unlink(self.file)

    def stop(self):
        if self.one("Type") == "oneshot" and self.active():
            self.commands("ExecStop", self.environment())
        self.ends(getattr(signal, self.one("KillSignal", "SIGTERM")))

    def restart(self):
        if self.one("Type") == "oneshot":
            self.stop()
        else:
            self.ends(getattr(signal, self.one("RestartKillSignal", self.one("KillSignal", "SIGTERM"))))
        self.start()

    def reload(self):
        environment = self.environment() | {"MAINPID": str(self.pid() or "")}
        self.commands("ExecReload", environment)


def main():
    words = sys.argv[1:]
    if sys.argv[0].endswith("journalctl"):
        sys.stdout.write(open(Unit(words[words.index("-u") + 1]).log).read())
        return
    flags = [word for word in words if word.startswith("-")]
    verb, *names = [word for word in words if not word.startswith("-")]
    if verb == "daemon-reload":
        return
    for unit in map(Unit, names):
        if verb == "enable" or verb == "disable":
            if "--now" in flags:
                unit.start() if verb == "enable" else unit.stop()
        elif verb == "is-active":
            print("active" if unit.active() else "inactive")
            if not unit.active():
                sys.exit(3)
        elif verb in ("start", "stop", "restart", "reload"):
            getattr(unit, verb)()
        else:
            fail(f"{verb}: not played here")


main()
