"""An OpenAI-compatible chat completions server that does what the last user message tells it to.

Directives, anywhere in that message:

    [[tool NAME {"json": "arguments"}]]   ask for a tool; several in one step are parallel calls
    [[then]]                              what follows is for the next step of the turn
    [[say TEXT]]                          answer with exactly this text
    [[long N]]                            answer with N words
    [[think S]]                           wait S seconds before the first byte
    [[slow S]]                            wait S seconds between two pieces of text
    [[cut N]]                             break the stream off in its middle, N times
    [[malformed N]]                       send a piece that is not JSON, N times
    [[status CODE N retry-after=S]]       answer with an HTTP error, N times

Without one it answers `You said: ` and the message, and `Result: ` with what tools have returned. The failures are
counted by what was asked, so a retry of the same call is the next attempt and another thread's words begin anew.
"""
