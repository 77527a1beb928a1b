"""What Ollama concludes from the text of a chat template."""

from __future__ import annotations

from packager.chat.conversation import Capability


def find_capabilities(jinja: str) -> tuple[Capability, ...]:
    """Returns what Ollama lets a model with this chat template be asked for, beside plain chat.

    Source: ollama v0.33.0, server/images.go, `chatTemplateHasToolSupport` and
    `chatTemplateHasThinkingSupport`.
    """
    found: list[Capability] = []
    if "tools" in jinja or "tool_call" in jinja:
        found.append("tools")
    if _thinks(jinja):
        found.append("thinking")
    return tuple(found)


def _thinks(jinja: str) -> bool:
    if "<think>" in jinja and "</think>" in jinja:
        return True
    splits = any(f"content.split({quote}</think>{quote})" in jinja for quote in "'\"")
    return splits and "reasoning_content" not in jinja and "<SPECIAL_12>" not in jinja
