"""Chat templates: what a conversation becomes, by token ids, and where generation ends."""
