#!/usr/bin/python3
# package: python3-aioftp
# python: aioftp
# login: lab lab
import asyncio
import os
import pathlib

import aioftp

users = [aioftp.User("lab", "lab", base_path=pathlib.Path(os.environ["ROOT"]))]


async def main():
    await aioftp.Server(users).run(os.environ["HOST"], int(os.environ["PORT"]))


asyncio.run(main())
