#!/usr/bin/node
// npm: ftpd
// login: lab lab
const { FtpServer } = require("ftpd");
const { HOST, PORT, ROOT } = process.env;
const server = new FtpServer(HOST, {
    getInitialCwd: () => "/",
    getRoot: () => ROOT,
    useWriteFile: false,
    useReadFile: false,
    pasvPortRangeStart: 40000,
    pasvPortRangeEnd: 49999,
});
server.on("client:connected", (connection) => {
    connection.on("command:user", (user, success) => success());
    connection.on("command:pass", (password, success) => success("lab"));
});
server.listen(Number(PORT));
