"""An answer in the form of each API, whole or as server-sent events, as vLLM writes them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from addons.sim.asked import Asked, read_chat, read_completion, read_messages, read_responses
from addons.sim.prompt import tokens

DONE = b"data: [DONE]\n\n"
_FILLER = (" and", " so", " on")


def answer_tokens(engine: str, asked: Asked) -> list[str]:
    """What the engine says: its name and an echo of the last user text, as long as it was asked to be."""
    if asked.tool is not None:
        return tokens(orjson.dumps({"text": f"{engine} says: {asked.last_text}"[:200]}).decode())
    said = tokens(f"{engine} says: {asked.last_text[: 8 * asked.max_tokens].strip()}")[: asked.max_tokens]
    return [*said, *itertools.islice(itertools.cycle(_FILLER), asked.max_tokens - len(said))]


def event(value: Mapping[str, Any], name: str | None = None) -> bytes:
    data = b"data: " + orjson.dumps(value) + b"\n\n"
    return data if name is None else b"event: " + name.encode() + b"\n" + data


@dataclass(slots=True)
class Reply:
    """One answer. `pieces` are its tokens."""

    id: str
    created: int
    model: str
    asked: Asked
    pieces: list[str]
    cached_tokens: int = 0

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def finish_reason(self) -> str:
        if self.asked.tool is not None:
            return "tool_calls"
        return "length" if self.asked.limited else "stop"

    @property
    def usage(self) -> dict[str, Any]:
        prompt, completion = len(self.asked.prompt), len(self.pieces)
        return {
            "prompt_tokens": prompt,
            "total_tokens": prompt + completion,
            "completion_tokens": completion,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }


class Form(Protocol):
    """How one API writes an answer. Each method gives bytes ready to send."""

    id_prefix: str

    def whole(self, reply: Reply) -> bytes: ...
    def opening(self, reply: Reply) -> bytes:
        """The events before the first token."""

    def piece(self, reply: Reply, index: int) -> bytes:
        """The event of one token."""

    def closing(self, reply: Reply) -> bytes:
        """The events after the last token."""


class ChatForm:
    id_prefix = "chatcmpl-"

    def whole(self, reply: Reply) -> bytes:
        message: dict[str, Any] = {"role": "assistant", "content": reply.text, "tool_calls": []}
        if reply.asked.tool is not None:
            message |= {"content": None, "tool_calls": [self._call(reply, reply.text)]}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reply.finish_reason}
        head = _head(reply, "chat.completion")
        return orjson.dumps({**head, "choices": [choice], "usage": reply.usage})

    def opening(self, reply: Reply) -> bytes:
        first = self._chunk(reply, {"role": "assistant", "content": ""})
        if reply.asked.tool is None:
            return first
        return first + self._chunk(reply, {"tool_calls": [{"index": 0, **self._call(reply, "")}]})

    def piece(self, reply: Reply, index: int) -> bytes:
        text = reply.pieces[index]
        if reply.asked.tool is None:
            return self._chunk(reply, {"content": text})
        return self._chunk(reply, {"tool_calls": [{"index": 0, "function": {"arguments": text}}]})

    def closing(self, reply: Reply) -> bytes:
        end = self._chunk(reply, {"content": ""}, reply.finish_reason)
        return end + _usage_event(reply, "chat.completion.chunk") + DONE

    def _chunk(self, reply: Reply, delta: Mapping[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return event({**_head(reply, "chat.completion.chunk"), "choices": [choice]})

    def _call(self, reply: Reply, arguments: str) -> dict[str, Any]:
        function = {"name": reply.asked.tool, "arguments": arguments}
        return {"id": f"call-{reply.id}", "type": "function", "function": function}


class CompletionForm:
    id_prefix = "cmpl-"

    def whole(self, reply: Reply) -> bytes:
        choice = self._choice(reply.text, reply.finish_reason)
        return orjson.dumps({**_head(reply, "text_completion"), "choices": [choice], "usage": reply.usage})

    def opening(self, reply: Reply) -> bytes:
        return b""

    def piece(self, reply: Reply, index: int) -> bytes:
        finish = reply.finish_reason if index == len(reply.pieces) - 1 else None
        choice = self._choice(reply.pieces[index], finish)
        return event({**_head(reply, "text_completion"), "choices": [choice]})

    def closing(self, reply: Reply) -> bytes:
        return _usage_event(reply, "text_completion") + DONE

    def _choice(self, text: str, finish: str | None) -> dict[str, Any]:
        return {"index": 0, "text": text, "logprobs": None, "finish_reason": finish}


class MessagesForm:
    """Anthropic's API."""

    id_prefix = "msg-"

    def whole(self, reply: Reply) -> bytes:
        content = [{"type": "text", "text": reply.text}]
        usage = self._usage(reply, len(reply.pieces))
        return orjson.dumps(self._message(reply, content, self._stop(reply), usage))

    def opening(self, reply: Reply) -> bytes:
        message = self._message(reply, [], None, self._usage(reply, 0))
        block = {"type": "text", "text": ""}
        return _named(type="message_start", message=message) + _named(
            type="content_block_start", index=0, content_block=block
        )

    def piece(self, reply: Reply, index: int) -> bytes:
        delta = {"type": "text_delta", "text": reply.pieces[index]}
        return _named(type="content_block_delta", index=0, delta=delta)

    def closing(self, reply: Reply) -> bytes:
        delta = {"stop_reason": self._stop(reply), "stop_sequence": None}
        usage = self._usage(reply, len(reply.pieces))
        return (
            _named(type="content_block_stop", index=0)
            + _named(type="message_delta", delta=delta, usage=usage)
            + _named(type="message_stop")
        )

    def _stop(self, reply: Reply) -> str:
        return "max_tokens" if reply.asked.limited else "end_turn"

    def _usage(self, reply: Reply, output: int) -> dict[str, int]:
        fresh = len(reply.asked.prompt) - reply.cached_tokens
        return {
            "input_tokens": fresh,
            "cache_read_input_tokens": reply.cached_tokens,
            "output_tokens": output,
        }

    def _message(
        self, reply: Reply, content: list[Any], stop: str | None, usage: dict[str, int]
    ) -> dict[str, Any]:
        head = {"id": reply.id, "type": "message", "role": "assistant", "model": reply.model}
        return {**head, "content": content, "stop_reason": stop, "stop_sequence": None, "usage": usage}


class ResponsesForm:
    """OpenAI's responses API; the events that clients read, not all that there are."""

    id_prefix = "resp-"

    def whole(self, reply: Reply) -> bytes:
        return orjson.dumps(self._response(reply, "completed"))

    def opening(self, reply: Reply) -> bytes:
        item = self._item(reply, "in_progress", [])
        return _named(type="response.created", response=self._response(reply, "in_progress")) + _named(
            type="response.output_item.added", output_index=0, item=item
        )

    def piece(self, reply: Reply, index: int) -> bytes:
        place = {"item_id": f"item-{reply.id}", "output_index": 0, "content_index": 0}
        return _named(type="response.output_text.delta", **place, delta=reply.pieces[index])

    def closing(self, reply: Reply) -> bytes:
        item = self._response(reply, "completed")["output"][0]
        return _named(type="response.output_item.done", output_index=0, item=item) + _named(
            type="response.completed", response=self._response(reply, "completed")
        )

    def _item(self, reply: Reply, status: str, content: list[Any]) -> dict[str, Any]:
        head = {"id": f"item-{reply.id}", "type": "message", "role": "assistant"}
        return {**head, "status": status, "content": content}

    def _response(self, reply: Reply, status: str) -> dict[str, Any]:
        done = status == "completed"
        text = {"type": "output_text", "text": reply.text, "annotations": []}
        usage = {
            "input_tokens": len(reply.asked.prompt),
            "input_tokens_details": {"cached_tokens": reply.cached_tokens},
            "output_tokens": len(reply.pieces),
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": len(reply.asked.prompt) + len(reply.pieces),
        }
        return {
            "id": reply.id,
            "object": "response",
            "created_at": reply.created,
            "model": reply.model,
            "status": status,
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "output": [self._item(reply, status, [text])] if done else [],
            "usage": usage if done else None,
        }


def _head(reply: Reply, kind: str) -> dict[str, Any]:
    return {"id": reply.id, "object": kind, "created": reply.created, "model": reply.model}


def _usage_event(reply: Reply, kind: str) -> bytes:
    if not reply.asked.include_usage:
        return b""
    return event({**_head(reply, kind), "choices": [], "usage": reply.usage})


def _named(**value: Any) -> bytes:
    return event(value, value["type"])


APIS: Mapping[str, tuple[Callable[[Mapping[str, Any]], Asked], Form]] = {
    "/v1/chat/completions": (read_chat, ChatForm()),
    "/v1/completions": (read_completion, CompletionForm()),
    "/v1/messages": (read_messages, MessagesForm()),
    "/v1/responses": (read_responses, ResponsesForm()),
}
