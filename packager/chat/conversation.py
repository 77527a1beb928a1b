"""The fixed conversations on which two renderings of a chat are compared, by token ids.

They are what Ollama passes on unchanged: no two turns of one role in a row, which it joins, and the
keys of tools and of their arguments in the order in which its Go templates have them (maps are
sorted, and the fields of a schema have their usual order).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Capability = Literal["tools", "thinking"]


@dataclass(frozen=True)
class Call:
    """A call of a tool.

    Attributes:
        id: Nine letters and digits, as Mistral's templates demand.
        name: Of the tool.
        arguments: By name, as JSON has them.
    """

    id: str
    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Turn:
    """One message.

    Attributes:
        role: system, user, assistant or tool.
        content: What is said; for a tool, what it answers.
        thinking: What the assistant thought before.
        calls: What the assistant calls.
        call: The call that a tool answers.
    """

    role: Literal["system", "user", "assistant", "tool"]
    content: str = ""
    thinking: str = ""
    calls: tuple[Call, ...] = ()
    call: Call | None = None


@dataclass(frozen=True)
class Conversation:
    """A conversation after which the assistant is to speak.

    Attributes:
        name: A short name.
        turns: What has been said.
        tools: What the assistant may call, as JSON schemas.
        think: Whether it is asked to think, or not to; None where nothing is said about it.
        needs: What a template must have for the conversation to make sense.
    """

    name: str
    turns: tuple[Turn, ...]
    tools: tuple[Mapping[str, Any], ...] = field(default=())
    think: bool | None = None
    needs: tuple[Capability, ...] = ()


_WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": 'Tells the weather "now" in <one> city & its suburbs.\nNever of tomorrow.',
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Its name, such as Zürich or 東京"},
                "unit": {
                    "type": "string",
                    "description": "Of the temperature",
                    "enum": ["celsius", "fahrenheit"],
                },
            },
            "required": ["city"],
        },
    },
}
_ADD: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds numbers.",
        "parameters": {
            "type": "object",
            "properties": {
                "numbers": {
                    "type": "array",
                    "description": "At least two",
                    "items": {"type": "number"},
                },
            },
            "required": ["numbers"],
        },
    },
}
_ASK_WEATHER = Call("callw0001", "get_weather", {"city": 'Zürich "West" <&>', "unit": "celsius"})
_ASK_SUM = Call("calla0002", "add", {"exact": True, "numbers": [1, 2.5, -3]})
_SYSTEM = Turn("system", "You answer in one short sentence.")
_HELLO = Turn("user", "Hello! Who are you?")
_REPLY = Turn("assistant", "I am a model that was trained for tests.")
_MORE = Turn("user", "What is 2 + 2?")
_FOUR = Turn("assistant", "2 + 2 is 4.")
_RAIN = Turn("user", "Does it rain in Zürich, and what is 1 + 2.5 - 3?")

CONVERSATIONS: tuple[Conversation, ...] = (
    Conversation("question", (_HELLO,)),
    Conversation("system", (_SYSTEM, _HELLO)),
    Conversation("turns", (_SYSTEM, _HELLO, _REPLY, _MORE)),
    Conversation("long", (_HELLO, _REPLY, _MORE, _FOUR, Turn("user", "And 3 + 3?"))),
    Conversation(
        "scripts",
        (
            Turn("user", "春眠不觉晓，处处闻啼鸟。 これは何ですか？"),
            Turn("assistant", "Это стихи — ποίημα. نعم، قصيدة. हाँ, कविता।"),
            Turn("user", "שלום! Cafe\u0301, naïve, ﬁn, Ǆ; ไทย 한국어."),
        ),
    ),
    Conversation(
        "emoji",
        (
            Turn("user", "👩\u200d👩\u200d👧\u200d👦 🏴\u200d☠\ufe0f 🇨🇭 🙂"),
            Turn("assistant", "👍🏽 ❤\ufe0f"),
            Turn("user", "A no-break\u00a0space and a zero\u200bwidth one."),
        ),
    ),
    Conversation(
        "blanks",
        (
            Turn("system", "  Indented.\n\n"),
            Turn("user", "\n  two blanks in front\tand a tab,\r\n\r\nthree behind   "),
            Turn("assistant", " one in front, an end of line behind\n"),
            Turn("user", "def f():\n    return 1\n"),
        ),
    ),
    Conversation(
        "markup",
        (
            Turn("user", "<b>\"a\" & 'b'</b> {{ .Role }} {% if x %} {# c #} $x \\n `d` %s"),
            Turn("assistant", '{"e": [1, "</e>"]} ```json```'),
            Turn("user", "[INST] <<SYS>> ### Response: USER: <|user|> # {-}"),
        ),
    ),
    Conversation("tools", (_HELLO,), (_WEATHER, _ADD), needs=("tools",)),
    Conversation("tools_system", (_SYSTEM, _RAIN), (_WEATHER,), needs=("tools",)),
    Conversation(
        "tool_answer",
        (
            _RAIN,
            Turn("assistant", calls=(_ASK_WEATHER,)),
            Turn("tool", '{"rain": "no", "temperature": 18}', call=_ASK_WEATHER),
        ),
        (_WEATHER,),
        needs=("tools",),
    ),
    Conversation(
        "tool_answers",
        (
            _SYSTEM,
            _RAIN,
            Turn("assistant", "Let me see.", calls=(_ASK_WEATHER, _ASK_SUM)),
            Turn("tool", "dry", call=_ASK_WEATHER),
            Turn("tool", "0.5", call=_ASK_SUM),
            Turn("assistant", "It is dry, and the sum is 0.5."),
            _MORE,
        ),
        (_WEATHER, _ADD),
        needs=("tools",),
    ),
    Conversation("think", (_SYSTEM, _HELLO), think=True, needs=("thinking",)),
    Conversation("think_not", (_HELLO,), think=False, needs=("thinking",)),
    Conversation(
        "thought",
        (_HELLO, Turn("assistant", "2 + 2 is 4.", thinking="Two and two:\nfour."), _MORE),
        needs=("thinking",),
    ),
    Conversation(
        "thought_tool",
        (
            _RAIN,
            Turn("assistant", thinking="I have to ask.", calls=(_ASK_WEATHER,)),
            Turn("tool", "dry", call=_ASK_WEATHER),
        ),
        (_WEATHER,),
        think=True,
        needs=("tools", "thinking"),
    ),
)  # fmt: skip


def chat_messages(conversation: Conversation) -> list[dict[str, Any]]:
    """Returns the messages as chat templates of transformers take them."""
    return [_message(turn) for turn in conversation.turns]


def ollama_request(conversation: Conversation) -> dict[str, Any]:
    """Returns the conversation as POST /api/chat of Ollama takes it, without a model.

    Source: ollama v0.33.0, api/types.go, `ChatRequest` and `Message`.
    """
    request: dict[str, Any] = {
        "messages": [_ollama_message(turn) for turn in conversation.turns],
        "tools": [dict(tool) for tool in conversation.tools],
    }
    if conversation.think is not None:
        request["think"] = conversation.think
    return request


def _message(turn: Turn) -> dict[str, Any]:
    message: dict[str, Any] = {"role": turn.role, "content": turn.content}
    if turn.thinking:
        message["reasoning_content"] = turn.thinking
    if turn.calls:
        message["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": dict(call.arguments)},
            }
            for call in turn.calls
        ]
    if turn.call is not None:
        message |= {"name": turn.call.name, "tool_call_id": turn.call.id}
    return message


def _ollama_message(turn: Turn) -> dict[str, Any]:
    message: dict[str, Any] = {"role": turn.role, "content": turn.content}
    if turn.thinking:
        message["thinking"] = turn.thinking
    if turn.calls:
        message["tool_calls"] = [
            {"id": call.id, "function": {"name": call.name, "arguments": dict(call.arguments)}}
            for call in turn.calls
        ]
    if turn.call is not None:
        message |= {"tool_name": turn.call.name, "tool_call_id": turn.call.id}
    return message
