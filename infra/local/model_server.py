"""The child process of `infra.local.model`: llama.cpp's HTTP server with one model, through xllamacpp."""

from __future__ import annotations

import argparse
import signal
import sys

import xllamacpp

_CONTEXT_TOKENS = 8192  # of one conversation: what the model was trained for
_SLOTS = 2  # requests at once; more would wait for the same cores
_ANSWER_TOKENS = 1024  # where the request sets no limit: so small a model may never come to an end
_PROMPT_CACHE_MIB = 64  # prompts kept for their next turn; 8 GiB by default


def serve(*, weights: str, name: str, port: int) -> None:
    """Serve the model on 127.0.0.1:`port` until this process gets SIGTERM or SIGINT."""
    stopping = {signal.SIGTERM, signal.SIGINT}
    # Before the server starts its threads, which inherit the mask: else one of them would take the signal and die.
    signal.pthread_sigmask(signal.SIG_BLOCK, stopping)
    params = xllamacpp.CommonParams()  # pyright: ignore[reportAttributeAccessIssue]
    params.model.path = weights
    params.model_alias = {name}
    params.hostnames = ["127.0.0.1"]
    params.port = port
    params.n_parallel = _SLOTS
    params.n_ctx = _CONTEXT_TOKENS * _SLOTS  # llama.cpp divides it among the slots
    params.n_predict = _ANSWER_TOKENS
    params.cache_ram_mib = _PROMPT_CACHE_MIB
    params.endpoint_slots = False
    params.ui = False
    params.verbosity = 1
    server = xllamacpp.Server(params)  # pyright: ignore[reportAttributeAccessIssue]
    signal.sigwait(stopping)
    del server


def main(argv: list[str]) -> int:
    """Command line entry; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m infra.local.model_server", description=__doc__)
    parser.add_argument("--weights", required=True, help="a GGUF file")
    parser.add_argument("--name", required=True, help="the model's name in requests and answers")
    parser.add_argument("--port", type=int, required=True, help="port on 127.0.0.1")
    arguments = parser.parse_args(argv)
    serve(weights=arguments.weights, name=arguments.name, port=arguments.port)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
