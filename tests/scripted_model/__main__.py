"""`python -m tests.scripted_model --port N`: the scripted model as a process of its own, until it is stopped."""

import argparse
import asyncio
import contextlib

from tests.scripted_model.server import ScriptedModel


async def serve(port: int) -> None:
    async with ScriptedModel(port=port) as model:
        print(model.base_url, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(parser.parse_args().port))
