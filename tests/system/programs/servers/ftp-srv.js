#!/usr/bin/node
// npm: ftp-srv
// login: lab lab
const { FtpSrv } = require("ftp-srv");
const { HOST, PORT, ROOT } = process.env;
const log = require("bunyan").createLogger({ name: "ftp-srv", level: "warn" });
const server = new FtpSrv({ url: `ftp://${HOST}:${PORT}`, pasv_url: HOST, log });
server.on("login", ({ username, password }, resolve, reject) =>
    username === "lab" && password === "lab" ? resolve({ root: ROOT }) : reject(new Error("no")));
server.listen();
