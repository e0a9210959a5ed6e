#!/usr/bin/node
// npm: jsftp
// verbs: PASV
const Ftp = require("jsftp");
const { writeFileSync, readFileSync } = require("fs");
const { HOST, PORT, LOGIN, PASSWORD, UPLOAD, TARGET } = process.env;
const ftp = new Ftp({ host: HOST, port: Number(PORT), user: LOGIN, pass: PASSWORD });
const promise = (what) => new Promise((resolve, reject) =>
    what((error, result) => (error ? reject(error) : resolve(result))));
(async () => {
    const files = await promise((done) => ftp.ls(".", done));
    writeFileSync("listing", files.map((file) => file.name).join("\n"));
    for (const name of ["small.bin", "second.bin"]) {
        const socket = await promise((done) => ftp.get(name, done));
        const pieces = [];
        socket.on("data", (piece) => pieces.push(piece));
        socket.resume();
        await new Promise((resolve) => socket.on("close", resolve));
        writeFileSync(name, Buffer.concat(pieces));
    }
    await promise((done) => ftp.put(readFileSync(UPLOAD), TARGET, done));
    await promise((done) => ftp.raw("quit", done));
    process.exit(0);
})().catch((error) => {
    console.error(error);
    process.exit(1);
});
