#!/usr/bin/python3
# package: python3-aioftp
# python: aioftp
# verbs: PASV EPSV
import asyncio
import logging
import os

import aioftp

env = os.environ
logging.basicConfig(level=logging.DEBUG)


async def main():
    client = aioftp.Client(passive_commands=[env["VERB"].lower()], socket_timeout=int(env["PATIENCE"]))
    await client.connect(env["HOST"], int(env["PORT"]))
    await client.login(env["LOGIN"], env["PASSWORD"])
    with open("listing", "w") as file:
        for path, _ in await client.list():
            print(path, file=file)
    await client.download("small.bin")
    await client.download("second.bin")
    await client.upload(env["UPLOAD"], env["TARGET"], write_into=True)
    await client.quit()


asyncio.run(main())
