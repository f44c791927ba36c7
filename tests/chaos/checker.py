"""What must hold once the dust has settled. Pure, and nothing of the platform's own code: events in, violations out."""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from tests.chaos.history import (
    Event,
    IllegalHistory,
    Turn,
    calls_of,
    describe,
    is_step,
    result_of,
    text_of,
    turns_of,
)

Thread = tuple[str, str]
"""Tenant and thread id."""

PromptKey = tuple[str, str, str]
"""Tenant, thread id and prompt id."""

TOKENS = ("input_tokens", "cached_input_tokens", "output_tokens", "reasoning_tokens")


@dataclass
class Evidence:
    """What is left of a run: topics as `read_committed` shows them, answers over HTTP, what the tools wrote down."""

    prompts: Sequence[Event] = ()
    messages: Sequence[Event] = ()
    completions: Sequence[Event] = ()
    usage: Sequence[Event] = ()
    tool_calls: Sequence[Event] = ()
    tool_results: Sequence[Event] = ()
    turns: Mapping[str, Event] = field(default_factory=dict)
    """The state topic, compacted: what is still open."""
    dead_letters: Sequence[Event] = ()
    remembered: Mapping[Thread, Sequence[Event]] = field(default_factory=dict)
    """Messages of each thread as the gateway pages through them."""
    metered: Sequence[Event] = ()
    """Rows of `GET /v1/usage` by thread, turn, kind, tool and outcome, with their `tenant_id`."""
    executions: Sequence[Event] = ()
    """What the tools wrote down: key and call_id, an execution each."""
    acknowledged: Sequence[PromptKey] = ()
    """Prompts whose sender was told that they are accepted."""
    answers: Sequence[Event] = ()
    """Terminal events that were given out over HTTP."""
    allowed: Mapping[PromptKey, set[str]] = field(default_factory=dict)
    """How the turn of a prompt may end, where the sender knows."""

    @cached_property
    def journals(self) -> dict[Thread, list[Event]]:
        return _by_thread(self.messages)

    @cached_property
    def histories(self) -> dict[Thread, list[Turn] | IllegalHistory]:
        return {thread: _parsed(journal) for thread, journal in self.journals.items()}

    @cached_property
    def parsed(self) -> dict[Thread, list[Turn]]:
        """The histories that are legal; the others are told of by `illegal_histories`."""
        return {thread: turns for thread, turns in self.histories.items() if not isinstance(turns, IllegalHistory)}

    @cached_property
    def submitted(self) -> dict[Thread, list[Event]]:
        """The prompts of each thread that are prompts, in the order of the log; an id counts once."""
        found: dict[Thread, list[Event]] = defaultdict(list)
        seen: set[PromptKey] = set()
        for event in self.prompts:
            key = _prompt_key(event)
            if event.get("type", "prompt.submitted") != "prompt.submitted" or "agent" not in event or key in seen:
                continue
            if key is not None:
                seen.add(key)
            found[_thread(event)].append(event)
        return found


def violations(evidence: Evidence) -> list[str]:
    """Everything that is wrong, in words. A run is good when there is nothing."""
    return [f"{check.__name__}: {found}" for check in CHECKS for found in check(evidence)]


def lost_prompts(evidence: Evidence) -> Iterable[str]:
    """What was acknowledged is on the log."""
    there = {_prompt_key(event) for event in evidence.prompts}
    for key in evidence.acknowledged:
        if key not in there:
            yield f"{key} was acknowledged and is not on the log"


def terminal_events(evidence: Evidence) -> Iterable[str]:
    """Each accepted prompt ends exactly once; nothing ends that nobody asked for; an id is one turn."""
    ended = _by_thread(evidence.completions)
    for thread in ended.keys() | evidence.submitted.keys():
        prompts = evidence.submitted.get(thread, [])
        named = Counter({prompt["prompt_id"]: 1 for prompt in prompts if prompt.get("prompt_id")})
        nameless = sum(1 for prompt in prompts if not prompt.get("prompt_id"))
        ends = Counter(event["prompt_id"] for event in ended.get(thread, []))
        others = {prompt_id: count for prompt_id, count in ends.items() if prompt_id not in named}
        wrong = {prompt_id: ends[prompt_id] for prompt_id in named if ends[prompt_id] != 1}
        if wrong:
            yield f"{thread}: terminal events by prompt, expected 1: {wrong}\n{_shown(evidence, thread)}"
        if len(others) != nameless or any(count != 1 for count in others.values()):
            yield f"{thread}: {nameless} prompts without an id, terminal events of unknown prompts: {others}"
    turn_ids = Counter(event["turn_id"] for event in evidence.completions)
    yield from (f"turn {turn_id} ends {count} times" for turn_id, count in turn_ids.items() if count > 1)


def outcomes(evidence: Evidence) -> Iterable[str]:
    """A turn ends as its prompt lets it."""
    for event in evidence.completions:
        allowed = evidence.allowed.get((*_thread(event), event["prompt_id"]))
        if allowed is not None and event["type"] not in allowed:
            yield f"{_thread(event)} {event['prompt_id']}: {event['type']}, expected {allowed}: {event.get('error')}"


def illegal_histories(evidence: Evidence) -> Iterable[str]:
    """Each journal is a history by the grammar."""
    for thread, turns in evidence.histories.items():
        if isinstance(turns, IllegalHistory):
            yield f"{thread}: {turns}\n{_shown(evidence, thread)}"


def turn_order(evidence: Evidence) -> Iterable[str]:
    """A thread's turns open in the order of its prompts, with the prompts' words."""
    for thread, turns in evidence.parsed.items():
        places: dict[str, int] = {}
        for place, prompt in enumerate(evidence.submitted.get(thread, [])):
            places.setdefault(prompt["content"], place)
        opened = [places.get(turn.question, -1) for turn in turns]
        if -1 in opened or opened != sorted(set(opened)):
            yield f"{thread}: turns of the prompts {opened} in this order\n{_shown(evidence, thread)}"


def endings(evidence: Evidence) -> Iterable[str]:
    """The terminal event of a turn says what its journal says."""
    ended = {event["turn_id"]: event for event in evidence.completions}
    opened: set[str] = set()
    for thread, turns in evidence.parsed.items():
        for turn in turns:
            opened.add(turn.turn_id)
            event = ended.get(turn.turn_id)
            if event is None:
                yield f"{thread} {turn.turn_id}: is in the journal and has no terminal event"
            elif difference := _difference(turn, event):
                yield f"{thread} {turn.turn_id}: {difference}\n{_shown(evidence, thread)}"
    in_illegal = {thread for thread, turns in evidence.histories.items() if isinstance(turns, IllegalHistory)}
    for event in evidence.completions:
        unopened = event["turn_id"] not in opened and _thread(event) not in in_illegal
        if unopened and (event["type"] not in ("turn.rejected", "turn.cancelled") or event.get("steps", 0)):
            yield f"{_thread(event)} {event['turn_id']}: {event['type']} of a turn that never opened"


def dropped_prompts(evidence: Evidence) -> Iterable[str]:
    """What was cancelled before its turn opened is dropped on the journal, once; what is dropped has its end."""
    ended = {event["turn_id"]: event for event in evidence.completions}
    opened = {event["turn_id"] for event in evidence.messages if event["type"] == "turn.opened"}
    dropped = Counter(
        (*_thread(event), event["turn_id"], event["prompt_id"])
        for event in evidence.messages
        if event["type"] == "prompt.dropped"
    )
    cancelled = {
        (*_thread(event), turn_id, event["prompt_id"])
        for turn_id, event in ended.items()
        if event["type"] == "turn.cancelled" and turn_id not in opened
    }
    yield from (
        f"{key}: cancelled while it waited, which the journal does not say" for key in cancelled - dropped.keys()
    )
    for key, count in dropped.items():
        end = ended.get(key[2], {})
        if end.get("prompt_id") != key[3] or end["type"] not in ("turn.cancelled", "turn.rejected"):
            yield f"{key}: dropped, and its end is {end}"
        if count > 1:
            yield f"{key}: dropped {count} times"


def answers_seen(evidence: Evidence) -> Iterable[str]:
    """The end of a turn that a client was told over HTTP is the one on the log."""
    ended = {event["turn_id"]: event for event in evidence.completions}
    for answer in evidence.answers:
        there = ended.get(answer["turn_id"], {})
        if any(there.get(name) != answer.get(name) for name in ("type", "prompt_id", "text", "steps")):
            yield f"HTTP said {answer}, the log says {there}"


def models_words(evidence: Evidence) -> Iterable[str]:
    """The scripted model repeats the question and the results that it sees: it saw the history as it is."""
    for thread, turns in evidence.parsed.items():
        for turn in turns:
            results = [result_of(event)["result"] for event in turn.results]
            words = f"You said: {turn.question.partition('[[')[0]}"
            words += f" Result: {'; '.join(map(str, results))}" if results else ""
            if turn.outcome == "completed" and turn.answer != words:
                yield f"{thread}: the model said {turn.answer!r}, expected {words!r}\n{_shown(evidence, thread)}"


def steps_billed(evidence: Evidence) -> Iterable[str]:
    """Each committed step is billed once, with its own tokens; nothing else of a model is billed."""
    steps = {(event["turn_id"], event["step"]): event for event in evidence.messages if is_step(event)}
    asked = [event for event in evidence.usage if event["kind"] == "completion"]
    billed = Counter((event["turn_id"], event["step"]) for event in asked if event["outcome"] == "ok")
    for step in steps.keys() | billed.keys():
        if billed[step] != (step in steps):
            yield f"{step}: billed {billed[step]} times, committed {int(step in steps)} times"
    for event in asked:
        step = steps.get((event["turn_id"], event["step"]))
        if event["billable"] != (event["outcome"] == "ok"):
            yield f"{event['usage_id']}: outcome {event['outcome']}, billable {event['billable']}"
        elif event["outcome"] == "ok" and step is not None and _tokens(event) != _tokens(step["usage"]):
            yield f"{event['usage_id']}: {_tokens(event)} tokens, the step has {_tokens(step['usage'])}"
    ids = Counter(event["usage_id"] for event in asked)
    yield from (f"usage {usage_id} is there {count} times" for usage_id, count in ids.items() if count > 1)


def usage_projected(evidence: Evidence) -> Iterable[str]:
    """ClickHouse has each unit of usage once: the same counts and sums by thread, turn, kind, tool and outcome."""
    unique = {event["usage_id"]: event for event in evidence.usage}
    expected: Counter[tuple[Any, ...]] = Counter()
    for event in unique.values():
        group = tuple(event.get(name) for name in ("tenant_id", "thread_id", "turn_id", "kind", "tool", "outcome"))
        expected.update(_sums(group, 1, int(event["billable"]), _tokens(event)))
    found: Counter[tuple[Any, ...]] = Counter()
    for row in evidence.metered:
        names = ("thread", "turn", "kind", "tool", "outcome")
        group = (row["tenant_id"], *(row["group"][name] for name in names))
        found.update(_sums(group, row["events"], row["billable_events"], _tokens(row)))
    for key in expected.keys() | found.keys():
        if expected[key] != found[key]:
            yield f"{key}: ClickHouse has {found[key]}, the log {expected[key]}"


def tool_messages(evidence: Evidence) -> Iterable[str]:
    """A call that was handed out is one call of the journal; its results, however many, are one message."""
    asked = {
        part["call_id"]: event
        for event in evidence.messages
        if event["type"] == "message.added" and event["role"] == "assistant"
        for part in calls_of(event)
    }
    applied = Counter(
        result_of(event)["call_id"]
        for event in evidence.messages
        if event["type"] == "message.added" and event["role"] == "tool"
    )
    handed_out = Counter(event["call_id"] for event in evidence.tool_calls)
    yield from (f"{call_id}: {count} tool messages" for call_id, count in applied.items() if count != 1)
    yield from (f"{call_id}: nobody asked for this call" for call_id in applied.keys() - asked.keys())
    yield from (f"{call_id}: nobody asked for this call" for call_id in handed_out.keys() - asked.keys())
    yield from (f"{call_id}: handed out {count} times" for call_id, count in handed_out.items() if count != 1)


def executions(evidence: Evidence) -> Iterable[str]:
    """However often a call was run, it was the same call; a result comes from an execution of it."""
    keys: dict[str, str] = {}
    for event in evidence.messages:
        if event["type"] == "message.added" and event["role"] == "assistant":
            keys |= {part["call_id"]: json.loads(part["arguments"])["key"] for part in calls_of(event)}
    ids: dict[str, set[str]] = defaultdict(set)
    for line in evidence.executions:
        ids[line["key"]].add(line["call_id"])
        if keys.get(line["call_id"]) != line["key"]:
            yield f"{line['call_id']} ran with {line['key']!r}, the journal has {keys.get(line['call_id'])!r}"
    yield from (f"{key!r} ran under the ids {found}" for key, found in ids.items() if len(found) > 1)
    ran = {line["call_id"] for line in evidence.executions}
    for event in evidence.messages:
        if event["type"] == "message.added" and event["role"] == "tool":
            part = result_of(event)
            if not part.get("is_error") and part["call_id"] not in ran:
                yield f"{part['call_id']} has the result {part['result']!r} and never ran"


def memory_projected(evidence: Evidence) -> Iterable[str]:
    """Memory has the messages of each thread, in the order of the journal."""
    for thread, journal in evidence.journals.items():
        expected = [_gist(event) for event in journal if event["type"] == "message.added"]
        remembered = evidence.remembered.get(thread, ())
        if [_gist(each) for each in remembered] != expected:
            shown = "\n".join(" ".join(map(str, _gist(each)))[:160] for each in remembered)
            yield f"{thread}: memory has\n{shown}\nthe journal has\n{_shown(evidence, thread)}"
        positions = [each["position"] for each in remembered]
        if positions != sorted(set(positions)):
            yield f"{thread}: positions {positions} do not ascend"


def open_work(evidence: Evidence) -> Iterable[str]:
    """Nothing is left open when everything has ended."""
    for key, state in evidence.turns.items():
        yield f"{key} is still open: {state}"


def dead_letters(evidence: Evidence) -> Iterable[str]:
    """What could not be taken in is a dead letter, once; nothing else is."""
    letters = Counter(_source(letter) for letter in evidence.dead_letters)
    expected: Counter[tuple[int, int]] = Counter()
    seen: set[PromptKey | None] = set()
    rejected = {event["prompt_id"] for event in evidence.completions if event["type"] == "turn.rejected"}
    for event in evidence.prompts:
        spoiled = event.get("type", "prompt.submitted") == "prompt.submitted" and "agent" not in event
        first = event.get("prompt_id") in rejected and _prompt_key(event) not in seen
        if spoiled or first:
            expected[event["position"]] = 1
        seen.add(_prompt_key(event))
    nameless = {
        event["position"] for event in evidence.prompts if not event.get("prompt_id") and event.get("agent") == "nobody"
    }
    expected.update(dict.fromkeys(nameless, 1))
    for position in letters.keys() | expected.keys():
        if letters[position] != expected[position]:
            yield f"prompts{list(position)}: {letters[position]} dead letters, expected {expected[position]}"


CHECKS: tuple[Callable[[Evidence], Iterable[str]], ...] = (
    lost_prompts,
    terminal_events,
    outcomes,
    illegal_histories,
    turn_order,
    endings,
    dropped_prompts,
    answers_seen,
    models_words,
    steps_billed,
    usage_projected,
    tool_messages,
    executions,
    memory_projected,
    open_work,
    dead_letters,
)


def _parsed(journal: Sequence[Event]) -> list[Turn] | IllegalHistory:
    try:
        return turns_of(journal)
    except IllegalHistory as error:
        return error


def _difference(turn: Turn, event: Event) -> str | None:
    outcome = event["type"].removeprefix("turn.")
    tokens = [sum(each["usage"].get(name, 0) for each in turn.assistants) for name in TOKENS]
    if (outcome, event["prompt_id"]) != (turn.outcome, turn.prompt_id):
        return f"{outcome} of {event['prompt_id']}; the journal has {turn.outcome} of {turn.prompt_id}"
    if event["steps"] != len(turn.assistants):
        return f"{event['steps']} steps; the journal has {len(turn.assistants)}"
    if _tokens(event["usage"]) != tokens:
        return f"{_tokens(event['usage'])} tokens; the steps have {tokens}"
    if outcome == "completed" and event["text"] != turn.answer:
        return f"the text {event['text']!r}; the journal has {turn.answer!r}"
    return None


def _gist(message: Event) -> tuple[Any, ...]:
    """What journal and memory must say alike."""
    results = [
        (part["call_id"], part["result"], part.get("is_error", False))
        for part in message["parts"]
        if part["type"] == "tool_result"
    ]
    calls = [part["call_id"] for part in calls_of(message)]
    return message["message_id"], message["turn_id"], message["step"], message["role"], text_of(message), calls, results


def _sums(group: tuple[Any, ...], events: int, billable: int, tokens: Sequence[int]) -> dict[tuple[Any, ...], int]:
    counts = dict(zip(("events", "billable", *TOKENS), (events, billable, *tokens), strict=True))
    return {(*group, name): count for name, count in counts.items()}


def _tokens(counts: Mapping[str, Any]) -> list[int]:
    return [counts.get(name, 0) for name in TOKENS]


def _by_thread(events: Iterable[Event]) -> dict[Thread, list[Event]]:
    found: dict[Thread, list[Event]] = defaultdict(list)
    for event in events:
        found[_thread(event)].append(event)
    return found


def _thread(event: Event) -> Thread:
    return event.get("tenant_id", "default"), event["thread_id"]


def _prompt_key(event: Event) -> PromptKey | None:
    return (*_thread(event), event["prompt_id"]) if event.get("prompt_id") else None


def _source(letter: Event) -> tuple[int, int]:
    return letter["partition"], letter["offset"]


def _shown(evidence: Evidence, thread: Thread) -> str:
    return describe(evidence.journals.get(thread, []))
