#!/usr/bin/node
// npm: ftp
// verbs: PASV
const Client = require("ftp");
const { writeFileSync, createWriteStream } = require("fs");
const { HOST, PORT, LOGIN, PASSWORD, UPLOAD, TARGET } = process.env;
const client = new Client();
const promise = (what) => new Promise((resolve, reject) =>
    what((error, result) => (error ? reject(error) : resolve(result))));
const get = async (name) => {
    const stream = await promise((done) => client.get(name, done));
    await new Promise((resolve, reject) => {
        stream.pipe(createWriteStream(name)).on("finish", resolve).on("error", reject);
    });
};
client.on("ready", async () => {
    const files = await promise((done) => client.list(done));
    writeFileSync("listing", files.map((file) => file.name).join("\n"));
    await get("small.bin");
    await get("second.bin");
    await promise((done) => client.put(UPLOAD, TARGET, done));
    client.end();
});
client.on("error", (error) => {
    console.error(error);
    process.exit(1);
});
process.on("unhandledRejection", (error) => {
    console.error(error);
    process.exit(1);
});
client.connect({ host: HOST, port: Number(PORT), user: LOGIN, password: PASSWORD, debug: console.log });
