"""What memory answers: threads, messages, turns, search and context."""

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TypeVar

from pydantic_core import from_json

from schemas.agents import MessageRange, SearchOptions
from schemas.http import (
    ContextRequest,
    ContextResponse,
    FoundBy,
    Highlight,
    MessageView,
    Page,
    SearchHit,
    SearchMode,
    SearchPage,
    SeenPrompt,
    ThreadOrder,
    ThreadView,
)
from schemas.ids import microseconds, turn_id_of
from schemas.journal import LAST_POSITION
from services.memory.context import MessageHit, assemble, tokens_of, within_budget
from services.memory.cursors import MOST_FOUND, Cursor, Place, decode_cursor
from services.memory.embeddings import Asker
from services.memory.fusion import Found
from services.memory.pending import OPEN_STATUSES, pending_answer
from services.memory.projector import (
    ABOUT_TOOLS,
    CallView,
    TurnView,
    call_point,
    message_point,
    thread_point,
    turn_point,
)
from services.memory.ranking import best
from services.memory.search import Search
from services.memory.store import Fields, Find, Hit, Listed, MemoryStore, Range
from services.runtime.errors import TurnlogError, UnavailableError

OWN_MESSAGES = 1000
"""Messages of a turn that are read at once. A turn of 1,000 steps has two and more of each."""

OPEN_TURNS = 10
"""Most open turns of a thread that are looked at: by its journal there is never more than one."""

BESIDE_A_PAGE = 3
"""Documents that are asked for beside those of a page: the last one of the page before, one that tells whether another
page follows, and one that tells that nothing equal to that is missing."""

WAYS: Mapping[SearchMode, tuple[FoundBy, ...]] = {
    "text": ("text",),
    "vector": ("vector",),
    "hybrid": ("text", "vector"),
}

MOST_THREADS = 1000
"""Threads of one user that a search looks into, those that were changed last."""

F = TypeVar("F", Found, Hit)


class NotFoundError(TurnlogError):
    """There is no such thing in this tenant."""

    code = "not_found"


class Reads:
    """Reads one store. Every method takes the tenant first.

    Args:
        search: of this store; by default one by words alone.
    """

    def __init__(self, store: MemoryStore, search: Search | None = None) -> None:
        self._store = store
        self._search = search or Search(store)

    async def thread(self, tenant_id: str, thread_id: str) -> ThreadView:
        """Raises NotFoundError."""
        return ThreadView.model_validate_json(await self._one(thread_point(tenant_id, thread_id), "thread", thread_id))

    async def is_being_deleted(self, tenant_id: str, thread_id: str) -> bool:
        documents = await self._store.get([thread_point(tenant_id, thread_id)])
        return any(each.fields.get("status") == "deleting" for each in documents)

    async def message(self, tenant_id: str, thread_id: str, message_id: str) -> MessageView:
        """Raises NotFoundError, also when it is of another thread."""
        body = await self._one(message_point(tenant_id, thread_id, message_id), "message", message_id)
        return MessageView.model_validate_json(body)

    async def turn(self, tenant_id: str, turn_id: str) -> TurnView:
        """Raises NotFoundError."""
        return TurnView.model_validate_json(await self._one(turn_point(tenant_id, turn_id), "turn", turn_id))

    async def tool_call(self, tenant_id: str, call_id: str) -> CallView:
        """Raises NotFoundError."""
        return CallView.model_validate_json(await self._one(call_point(tenant_id, call_id), "tool call", call_id))

    async def threads(
        self,
        tenant_id: str,
        *,
        user_id: str | None = None,
        status: str | None = None,
        query: str | None = None,
        order: ThreadOrder = "updated",
        cursor: str | None = None,
        limit: int = 50,
    ) -> Page[ThreadView]:
        """Those in which `user_id` took part, last changed or created first.

        With a query the best matches of title and summary, the first 1000, whatever the order.
        """
        where = _asked(user_id=user_id, status=status)
        find = Find("thread", tenant_id, where)
        if query:
            place = Place.after(cursor, limit)
            hits = await best(lambda asked: self._store.search(find, query, asked), place.depth)
            bodies = await self._bodies(hits[place.begin : place.end])
            items = [ThreadView.model_validate_json(body) for _, body in bodies]
            return Page[ThreadView](items=items, next_cursor=place.following(len(hits)))
        documents, following = await self._page(find, order, descending=True, cursor=cursor, limit=limit)
        items = [ThreadView.model_validate_json(document.body) for document in documents]
        return Page[ThreadView](items=items, next_cursor=following)

    async def messages(
        self,
        tenant_id: str,
        thread_id: str,
        *,
        cursor: str | None = None,
        limit: int = 50,
        descending: bool = False,
        role: str | None = None,
        status: str | None = None,
        agent: str | None = None,
        turn_id: str | None = None,
        exclude_tool: bool = False,
        positions: Range = Range(),
    ) -> Page[MessageView]:
        """In thread order. `exclude_tool` leaves out tools' answers and messages that do nothing but call tools.

        With those that are stored as `pending`, or as `streaming`, goes what open turns have yet to answer, behind them
        all, beyond `limit`, and `pending`: memory does not know what of it has come.
        """
        where = _asked(thread_id=thread_id, role=role, status=status, agent=agent, turn_id=turn_id)
        find = Find("message", tenant_id, where, ABOUT_TOOLS if exclude_tool else {})
        documents, following = await self._page(
            find, "position", descending=descending, cursor=cursor, limit=limit, bounds=positions
        )
        items = _messages(documents)
        is_last = (cursor if descending else following) is None
        if status in ("pending", "streaming") and is_last and positions.holds(LAST_POSITION):
            yet = await self._pending(tenant_id, thread_id, role, agent, turn_id)
            items = [*yet, *items] if descending else [*items, *yet]
        return Page[MessageView](items=items, next_cursor=following)

    async def _pending(
        self, tenant_id: str, thread_id: str, role: str | None, agent: str | None, turn_id: str | None
    ) -> list[MessageView]:
        turns: list[TurnView] = []
        for status in OPEN_STATUSES:
            find = Find("turn", tenant_id, {**_asked(thread_id=thread_id, turn_id=turn_id), "status": status})
            found = await self._store.scroll(find, order_by="created", descending=False, limit=OPEN_TURNS)
            turns += [TurnView.model_validate_json(each.body) for each in found]
        pending: list[MessageView] = []
        for turn in turns:
            page = await self.messages(
                tenant_id, thread_id, turn_id=turn.turn_id, role="assistant", limit=1, descending=True
            )
            pending.append(pending_answer(turn, page.items))
        return [each for each in pending if role in (None, each.role) and agent in (None, each.agent)]

    async def search(
        self,
        tenant_id: str,
        query: str,
        *,
        mode: SearchMode = "text",
        user_id: str | None = None,
        thread_id: str | None = None,
        agent: str | None = None,
        role: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        least: float | None = None,
        cursor: str | None = None,
        limit: int = 20,
    ) -> SearchPage:
        """Best matches first, the first 1000, over all threads of the tenant, or those in which `user_id` takes part.

        `since` is inclusive, `until` is not. Raises BadCursorError, and UnavailableError when only meaning is asked and
        there is no vector of the query.
        """
        created = Range(microseconds(since) - 1 if since else None, microseconds(until) if until else None)
        among = {"thread_id": await self._threads_of(tenant_id, user_id)} if user_id is not None else {}
        where = _asked(thread_id=thread_id, agent=agent, role=role)
        find = Find("message", tenant_id, where, between={"created": created}, among=among)
        place = Place.after(cursor, limit)
        result = await self._search.messages(
            find,
            query,
            WAYS[mode],
            place.depth,
            Asker(tenant_id, user_id, thread_id),
            least=least,
            depth=MOST_FOUND,
        )
        if result.without_vector and mode == "vector":
            raise UnavailableError(result.without_vector)
        return SearchPage(
            items=await self._shown(result.found[place.begin : place.end], query),
            next_cursor=place.following(len(result.found)),
            without_vector=result.without_vector,
        )

    async def _threads_of(self, tenant_id: str, user_id: str) -> list[str]:
        """Those in which a user takes part, last changed first."""
        find = Find("thread", tenant_id, {"user_id": user_id})
        listed = await self._store.scroll(find, order_by="updated", descending=True, limit=MOST_THREADS)
        return [from_json(each.body)["thread_id"] for each in listed]

    async def _bodies(self, found: Sequence[F]) -> list[tuple[F, str]]:
        """What each says that was found, without those that have gone meanwhile."""
        bodies = await self._store.bodies([each.point_id for each in found])
        return [(each, bodies[each.point_id]) for each in found if each.point_id in bodies]

    async def _shown(self, found: Sequence[Found], query: str) -> list[SearchHit]:
        """Others have a turn behind each: a long text takes some milliseconds to mark."""
        marker = self._store.marker(query)
        hits: list[SearchHit] = []
        for each, body in await self._bodies(found):
            message = MessageView.model_validate_json(body)
            marks = [Highlight(start=start, end=end) for start, end in marker(message.text)]
            hits.append(SearchHit(message=message, score=each.score, found_by=list(each.found_by), highlights=marks))
            await asyncio.sleep(0)
        return hits

    async def seen(self, prompts: Sequence[SeenPrompt]) -> list[SeenPrompt]:
        """Those of the prompts that already had a turn."""
        points = {
            turn_point(each.tenant_id, turn_id_of(each.tenant_id, each.thread_id, each.prompt_id)): each
            for each in prompts
        }
        return [points[document.point_id] for document in await self._store.get(list(points))]

    async def context(self, request: ContextRequest) -> ContextResponse:
        """What a model should see of the thread, without the offset: the caller has waited for it."""
        options = request.options
        turn = [] if request.turn_id is None else await self._of_turn(request, request.turn_id)
        recent = Page[MessageView](items=[], next_cursor="")
        if options.recent_messages:
            recent = await self.messages(
                request.tenant_id,
                request.thread_id,
                limit=options.recent_messages,
                descending=True,
                exclude_tool=options.exclude_tool_messages,
            )
        hits: list[MessageHit] = []
        neighbours: list[MessageView] = []
        without_vector = None
        if options.search is not None and options.search.limit:
            hits, without_vector = await self._hits(request, options.search, turn, recent.items)
            ranges = [_not_in_hand(request, hit.message, options.search.message_range, recent) for hit in hits]
            around = [
                self._around(request, hit.message, wanted)
                for hit, wanted in zip(hits, ranges, strict=True)
                if wanted.before or wanted.after
            ]
            neighbours = [each for some in await asyncio.gather(*around) for each in some]
        messages = assemble(request.thread_id, turn=turn, recent=recent.items, hits=hits, neighbours=neighbours)
        kept = messages if options.max_tokens is None else within_budget(messages, options.max_tokens)
        return ContextResponse(
            messages=kept,
            tokens=tokens_of(kept),
            left_out=len(messages) - len(kept),
            without_vector=without_vector,
        )

    async def _of_turn(self, request: ContextRequest, turn_id: str) -> list[MessageView]:
        """All of them: a worker that takes a turn over goes on from the last."""
        messages: list[MessageView] = []
        cursor: str | None = None
        while True:
            page = await self.messages(
                request.tenant_id, request.thread_id, turn_id=turn_id, limit=OWN_MESSAGES, cursor=cursor
            )
            messages += page.items
            cursor = page.next_cursor
            if cursor is None:
                return messages

    async def _hits(
        self,
        request: ContextRequest,
        search: SearchOptions,
        turn: Sequence[MessageView],
        recent: Sequence[MessageView],
    ) -> tuple[list[MessageHit], str | None]:
        """What matches, but for the turn's own and for what asks, which is no answer. And why meaning was not asked, if
        so."""
        asks = None if request.query else await self._asks(request, turn)
        query = request.query or (asks.text if asks else "")
        if not query:
            return [], None
        threads = [request.thread_id]
        if search.other_threads and request.user_id is not None:
            threads += await self._threads_of(request.tenant_id, request.user_id)
        own: Fields = {"turn_id": request.turn_id} if request.turn_id is not None else {}
        find = Find("message", request.tenant_id, {}, {**_without(request), **own}, among={"thread_id": threads})
        wanted: dict[FoundBy, bool] = {"text": search.text, "vector": search.vector}
        result = await self._search.messages(
            find,
            query,
            [by for by, is_wanted in wanted.items() if is_wanted],
            search.limit + (asks is not None),
            Asker(request.tenant_id, request.user_id, request.thread_id, None if request.preview else request.turn_id),
            least=search.score_threshold,
        )
        asking = _point_of(asks) if asks is not None else None
        others = [each for each in result.found if each.point_id != asking]
        found = {each.point_id: each for each in others[: search.limit]}
        messages = {_point_of(each): each for each in (*turn, *recent)}
        bodies = await self._store.bodies([point for point in found if point not in messages])
        messages |= {point: MessageView.model_validate_json(body) for point, body in bodies.items()}
        hits = [
            MessageHit(messages[point], each.score, each.found_by) for point, each in found.items() if point in messages
        ]
        return hits, result.without_vector

    async def _asks(self, request: ContextRequest, turn: Sequence[MessageView]) -> MessageView | None:
        """The message that says what is looked for: the turn's own prompt, without a turn the last one of a user."""
        if request.turn_id is not None:
            return next((each for each in turn if each.role == "user"), None)
        page = await self.messages(request.tenant_id, request.thread_id, role="user", limit=1, descending=True)
        return next(iter(page.items), None)

    async def _around(self, request: ContextRequest, message: MessageView, wanted: MessageRange) -> list[MessageView]:
        """Neighbours of a hit."""
        find = Find("message", request.tenant_id, {"thread_id": message.thread_id}, _without(request))

        async def nearest(count: int, within: Range, *, descending: bool) -> Sequence[Listed]:
            if not count:
                return []
            return await self._store.scroll(
                find, order_by="position", descending=descending, limit=count, within=within
            )

        before, after = await asyncio.gather(
            nearest(wanted.before, Range(below=message.position), descending=True),
            nearest(wanted.after, Range(above=message.position), descending=False),
        )
        return _messages([*before, *after])

    async def _page(
        self,
        find: Find,
        order_by: str,
        *,
        descending: bool,
        cursor: str | None,
        limit: int,
        bounds: Range = Range(),
    ) -> tuple[Sequence[Listed], str | None]:
        """A page and the cursor of the next one. Documents of equal value come in the order of their ids.

        An engine gives any of those that are equal to the last one, so it is asked for more until all are there: of
        many threads of one microsecond each page looks at all, in 17 us each.
        """
        order = f"-{order_by}" if descending else order_by
        start, within = None, bounds
        if cursor is not None:
            start = decode_cursor(cursor, order)
            within = bounds.within(Range(below=start.value + 1) if descending else Range(above=start.value - 1))
        asked = limit + BESIDE_A_PAGE
        while True:
            scrolled = await self._store.scroll(
                find, order_by=order_by, descending=descending, limit=asked, within=within
            )
            is_end = len(scrolled) < asked
            whole = scrolled if is_end else [each for each in scrolled if each.value != scrolled[-1].value]
            ordered = _in_order(whole, descending=descending)
            found = [each for each in ordered if start is None or start.is_before(each, descending=descending)]
            if is_end or len(found) > limit:
                break
            asked *= 4
        page = found[:limit]
        return page, Cursor(order, page[-1].value, page[-1].point_id).encode() if len(found) > limit else None

    async def _one(self, point: str, what: str, name: str) -> str:
        documents = await self._store.get([point])
        if not documents:
            raise NotFoundError(f"there is no {what} {name!r}")
        return documents[0].body


def _not_in_hand(
    request: ContextRequest, message: MessageView, wanted: MessageRange, recent: Page[MessageView]
) -> MessageRange:
    """What of the neighbours of a message may be missing among the recent ones of the request's thread.

    Args:
        recent: the latest first.
    """
    if message.thread_id != request.thread_id:
        return wanted
    if recent.next_cursor is None:
        return MessageRange(before=0, after=0)
    earlier = sum(each.position < message.position for each in recent.items)
    is_followed = bool(recent.items) and recent.items[-1].position <= message.position
    return MessageRange(
        before=0 if earlier >= wanted.before else wanted.before, after=0 if is_followed else wanted.after
    )


def _point_of(message: MessageView) -> str:
    return message_point(message.tenant_id, message.thread_id, message.message_id)


def _in_order(listed: Sequence[Listed], *, descending: bool) -> Sequence[Listed]:
    """By value, which is how they come, and by id, which takes long to ask for where there are many."""
    if len({each.value for each in listed}) == len(listed):
        return listed
    return sorted(listed, key=lambda each: (each.value, each.point_id), reverse=descending)


def _messages(listed: Sequence[Listed]) -> list[MessageView]:
    return [MessageView.model_validate_json(each.body) for each in listed]


def _asked(**fields: str | None) -> Fields:
    return {name: value for name, value in fields.items() if value is not None}


def _without(request: ContextRequest) -> Fields:
    return ABOUT_TOOLS if request.options.exclude_tool_messages else {}
