"""Debian's Postgres server with its own settings, in a folder that goes at the end."""

import asyncio
import os
import pwd
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.support.installation import free_ports
from tests.support.waiting import eventually


class Unavailable(Exception):
    """A contestant can't take part on this machine; the message says why."""


def install() -> None:
    """Debian's package, where there is none and this process may. Says so; leaves the rest to `programs`."""
    if _folders() or os.geteuid() != 0 or shutil.which("apt-get") is None:
        return
    print("Installing Debian's postgresql, for the peers that need it.", file=sys.stderr)
    os.spawnlp(os.P_WAIT, "apt-get", "apt-get", "install", "-y", "-qq", "postgresql")


def programs() -> Path:
    """The folder of `initdb` and `postgres`. Raises `Unavailable`."""
    if folders := _folders():
        return folders[-1]
    raise Unavailable("no Postgres server here: apt-get install postgresql")


def _folders() -> list[Path]:
    return sorted(each.parent for each in Path("/usr/lib/postgresql").glob("*/bin/initdb"))


@asynccontextmanager
async def postgres() -> AsyncIterator[str]:
    """Its URL. It refuses to run as root, so root runs it as `nobody`."""
    program = programs()
    user = "nobody" if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="turnlog-bench-postgres-"))
    if user:
        os.chown(folder, pwd.getpwnam(user).pw_uid, -1)
    port, data = free_ports(1), folder / "data"
    with (folder / "output.txt").open("wb") as output:
        made = await asyncio.create_subprocess_exec(
            program / "initdb", "-D", data, "-U", "postgres", "-A", "trust", user=user, stdout=output, stderr=output
        )
        assert await made.wait() == 0, (folder / "output.txt").read_text()
        server = await asyncio.create_subprocess_exec(
            *(program / "postgres", "-D", data, "-p", str(port), "-k", folder, "-c", "max_connections=200"),
            user=user,
            stdout=output,
            stderr=output,
        )

        async def answers() -> bool:
            assert server.returncode is None, (folder / "output.txt").read_text()
            ready = await asyncio.create_subprocess_exec(
                *(program / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port))
            )
            return await ready.wait() == 0

        try:
            await eventually(answers, "Postgres to answer")
            yield f"postgresql://postgres:none@127.0.0.1:{port}"
        finally:
            if server.returncode is None:
                server.terminate()
            await server.wait()
            shutil.rmtree(folder, ignore_errors=True)
