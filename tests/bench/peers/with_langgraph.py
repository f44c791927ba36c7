# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "langgraph>=1.2,<1.3",
#     "langgraph-checkpoint-postgres",
#     "langgraph-checkpoint-sqlite",
#     "openai[aiohttp]>=2",
#     "psycopg[binary,pool]",
# ]
# ///
"""langgraph: a graph of two nodes, its checkpointer with durability "sync": a step is kept before the next begins.

`with_langgraph.py sqlite|postgres`. The model is called by the `openai` client on aiohttp, as the floor does.
"""

import asyncio
import operator
import sys
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, TypedDict

from harness import FOLDER, IN_FLIGHT, POSTGRES, take_commands
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import END, START, StateGraph
from loop import ask, model_client, tool_messages
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool


class State(TypedDict):
    messages: Annotated[list[Any], operator.add]


class OnLanggraph:
    def __init__(self, saver: BaseCheckpointSaver[Any]) -> None:
        client = model_client()

        async def model(state: State) -> dict[str, Any]:
            return {"messages": [await ask(client, state["messages"])]}

        async def tools(state: State) -> dict[str, Any]:
            return {"messages": tool_messages(state["messages"][-1])}

        graph = StateGraph(State)
        graph.add_node("model", model)
        graph.add_node("tools", tools)
        graph.add_edge(START, "model")
        graph.add_conditional_edges("model", lambda state: "tools" if state["messages"][-1].get("tool_calls") else END)
        graph.add_edge("tools", "model")
        self._graph = graph.compile(checkpointer=saver)

    async def turn(self, turn: str, content: str) -> str:
        return await self._run(turn, {"messages": [{"role": "user", "content": content}]})

    async def answers(self, turn: str) -> int:
        state = await self._graph.aget_state({"configurable": {"thread_id": turn}})
        return int(bool(state.values) and not state.next)

    async def resume(self, turn: str) -> None:
        await self._run(turn, None)

    async def _run(self, thread: str, given: Any) -> str:
        ended = await self._graph.ainvoke(given, {"configurable": {"thread_id": thread}}, durability="sync")
        return ended["messages"][-1]["content"]


def sqlite() -> AbstractAsyncContextManager[BaseCheckpointSaver[Any]]:
    return AsyncSqliteSaver.from_conn_string(str(Path(FOLDER) / "checkpoints.sqlite"))


@asynccontextmanager
async def postgres() -> Any:
    options = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}
    async with AsyncConnectionPool(POSTGRES, min_size=4, max_size=IN_FLIGHT, kwargs=options) as pool:
        saver = AsyncPostgresSaver(pool)
        await saver.setup()
        yield saver


async def main() -> None:
    async with {"sqlite": sqlite, "postgres": postgres}[sys.argv[1]]() as saver:
        package = f"langgraph-checkpoint-{sys.argv[1]}"
        await take_commands(OnLanggraph(saver), "langgraph", package, "openai", "aiohttp")


if __name__ == "__main__":
    asyncio.run(main())
