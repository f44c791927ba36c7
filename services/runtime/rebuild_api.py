"""`/rebuild`: how the command line drives a rebuild, which runs in the process that has the store open."""

from fastapi import FastAPI

from schemas.http import RebuildStatus
from services.runtime.rebuild import NoRebuildError, Rebuild, RebuildRunningError
from services.runtime.web import problem


def install_rebuild(app: FastAPI, rebuild: Rebuild) -> None:
    """Adds `POST`, `GET` and `DELETE /rebuild`. For an interface inside the platform: whoever reaches it may use it."""

    @app.post("/rebuild", status_code=202)
    async def begin() -> RebuildStatus:
        try:
            return await rebuild.start()
        except RebuildRunningError as error:
            raise problem(409, "rebuild-running", "A rebuild is running", str(error)) from error

    @app.get("/rebuild")
    async def progress() -> RebuildStatus:
        return rebuild.status()

    @app.delete("/rebuild")
    async def cancel() -> RebuildStatus:
        try:
            return await rebuild.cancel()
        except NoRebuildError as error:
            raise problem(409, "no-rebuild", "No rebuild is running", str(error)) from error
