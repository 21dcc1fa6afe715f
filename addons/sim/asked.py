"""Request bodies of the APIs, read into what the engine needs: `Asked`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from addons.sim.errors import BadRequest
from addons.sim.prompt import tokens

DEFAULT_MAX_TOKENS = 16
IMAGE_TOKENS = 256


@dataclass(frozen=True, slots=True)
class Asked:
    """One request. `prompt` are its tokens after the (invented) chat template."""

    model: str | None
    prompt: list[str]
    last_text: str
    max_tokens: int
    limited: bool
    """The client gave max_tokens, so the answer ends because of its length."""
    stream: bool = False
    include_usage: bool = False
    tool: str | None = None
    """The function that the answer must call."""
    inputs: list[int] = field(default_factory=list)
    """Tokens of each input of an embedding."""


def read_json(raw: bytes) -> dict[str, Any]:
    """Raises BadRequest unless `raw` is a JSON object."""
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"Invalid JSON: {error}") from error
    if not isinstance(body, dict):
        raise BadRequest("The body is not a JSON object.")
    return body


def read_chat(body: Mapping[str, Any]) -> Asked:
    return _conversation(body, _list(body, "messages"), ("max_completion_tokens", "max_tokens"))


def read_messages(body: Mapping[str, Any]) -> Asked:
    system = [{"role": "system", "content": body["system"]}] if body.get("system") else []
    return _conversation(body, [*system, *_list(body, "messages")], ("max_tokens",))


def read_responses(body: Mapping[str, Any]) -> Asked:
    given = body.get("input")
    turns = [{"role": "user", "content": given}] if isinstance(given, str) else _list(body, "input")
    if body.get("instructions"):
        turns = [{"role": "system", "content": body["instructions"]}, *turns]
    return _conversation(body, turns, ("max_output_tokens",))


def read_completion(body: Mapping[str, Any]) -> Asked:
    prompts = _inputs(body, "prompt")
    text = "".join(prompts[-1])
    return _asked(body, [piece for prompt in prompts for piece in prompt], text, ("max_tokens",))


def read_embedding(body: Mapping[str, Any]) -> Asked:
    inputs = _inputs(body, "input")
    return Asked(
        model=_model(body),
        prompt=[piece for one in inputs for piece in one],
        last_text="",
        max_tokens=0,
        limited=False,
        inputs=[len(one) for one in inputs],
    )


def _conversation(body: Mapping[str, Any], turns: list[Any], limits: tuple[str, ...]) -> Asked:
    prompt: list[str] = []
    if body.get("tools"):
        prompt += ["<|tools|>", *tokens(orjson.dumps(body["tools"]).decode())]
    last_text = ""
    for turn in turns:
        if not isinstance(turn, dict):
            raise BadRequest("Every message must be an object.")
        role = str(turn.get("role", turn.get("type", "user")))
        prompt.append(f"<|{role}|>")
        content = turn.get("content", turn.get("output"))
        texts = list(_pieces(content, prompt))
        if role == "user" and texts:
            last_text = texts[-1]
        for key in ("tool_calls", "arguments"):
            if turn.get(key):
                prompt += tokens(orjson.dumps(turn[key]).decode())
    prompt.append("<|assistant|>")
    return _asked(body, prompt, last_text, limits)


def _pieces(content: Any, prompt: list[str]) -> Iterator[str]:
    """Append the tokens of a message's content to `prompt`; yields its texts."""
    for part in content if isinstance(content, list) else [content]:
        text = part.get("text") if isinstance(part, dict) else part
        if isinstance(text, str):
            prompt += tokens(text)
            yield text
        elif isinstance(part, dict):
            kind = str(part.get("type", ""))
            data = orjson.dumps(part)
            if any(word in kind for word in ("image", "audio", "video", "file", "document")):
                # The same picture is the same tokens, so it can be a prefix.
                prompt += [f"<|{kind} {hash(data)}|>"] * IMAGE_TOKENS
            else:
                prompt += tokens(data.decode())
        elif text is not None:
            raise BadRequest("The content of a message must be text or a list of parts.")


def _asked(body: Mapping[str, Any], prompt: list[str], last_text: str, limits: tuple[str, ...]) -> Asked:
    max_tokens = DEFAULT_MAX_TOKENS
    limited = False
    for key in limits:
        given = body.get(key)
        if given is None:
            continue
        if not isinstance(given, int) or isinstance(given, bool) or given < 1:
            raise BadRequest(f"{key} must be at least 1, got {str(given)[:40]}.")
        max_tokens, limited = given, True
        break
    options = body.get("stream_options")
    return Asked(
        model=_model(body),
        prompt=prompt,
        last_text=last_text,
        max_tokens=max_tokens,
        limited=limited,
        stream=body.get("stream") is True,
        include_usage=isinstance(options, dict) and options.get("include_usage") is True,
        tool=_tool(body),
    )


def _tool(body: Mapping[str, Any]) -> str | None:
    tools, choice = body.get("tools"), body.get("tool_choice")
    if not isinstance(tools, list) or not tools:
        return None
    if isinstance(choice, dict) and isinstance(choice.get("function"), dict):
        return str(choice["function"].get("name"))
    if choice != "required" or not isinstance(tools[0], dict):
        return None
    function = tools[0].get("function")
    return str((function if isinstance(function, dict) else tools[0]).get("name"))


def _model(body: Mapping[str, Any]) -> str | None:
    model = body.get("model")
    if model is not None and not isinstance(model, str):
        raise BadRequest("model must be a string.")
    return model


def _list(body: Mapping[str, Any], key: str) -> list[Any]:
    value = body.get(key)
    if not isinstance(value, list) or not value:
        raise BadRequest(f"{key} must be a list with at least one element.")
    return value


def _inputs(body: Mapping[str, Any], key: str) -> list[list[str]]:
    """The inputs, as tokens: a text, a list of texts, of token ids, or of lists of token ids."""
    given = body.get(key)
    if isinstance(given, list) and given and all(isinstance(one, int) for one in given):
        given = [given]
    inputs = []
    for one in given if isinstance(given, list) else [given]:
        if isinstance(one, str):
            inputs.append(tokens(one))
        elif isinstance(one, list):
            inputs.append([f" {number}" for number in one])
        else:
            raise BadRequest(f"{key} must be a text or a list.")
    if not inputs:
        raise BadRequest(f"{key} is empty.")
    return inputs
