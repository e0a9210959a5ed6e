#!/usr/bin/node
// npm: basic-ftp
// verbs: PASV EPSV
const ftp = require("basic-ftp");
const { writeFileSync } = require("fs");
const { HOST, PORT, LOGIN, PASSWORD, VERB, PATIENCE, UPLOAD, TARGET } = process.env;
(async () => {
    const client = new ftp.Client(PATIENCE * 1000, { allowSeparateTransferHost: true });
    client.ftp.verbose = true;
    if (VERB === "PASV") client.prepareTransfer = ftp.enterPassiveModeIPv4;
    await client.access({ host: HOST, port: Number(PORT), user: LOGIN, password: PASSWORD });
    writeFileSync("listing", (await client.list()).map((file) => file.name).join("\n"));
    await client.downloadTo("small.bin", "small.bin");
    await client.downloadTo("second.bin", "second.bin");
    await client.uploadFrom(UPLOAD, TARGET);
    client.close();
})().catch((error) => {
    console.error(error);
    process.exit(1);
});
