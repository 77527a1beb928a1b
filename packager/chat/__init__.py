"""Chat templates: what a conversation becomes, by token ids, and where generation ends."""

from packager.chat.apart import choose_chat, read_end_ids, render_chat
from packager.chat.choice import ChatChoice
from packager.chat.conversation import CONVERSATIONS, Conversation, chat_messages, ollama_request
from packager.chat.rendering import Rendering, render_ids, render_text

__all__ = [
    "CONVERSATIONS",
    "ChatChoice",
    "Conversation",
    "Rendering",
    "chat_messages",
    "choose_chat",
    "ollama_request",
    "read_end_ids",
    "render_chat",
    "render_ids",
    "render_text",
]
