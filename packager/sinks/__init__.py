"""Where streamed tensors go: each sink writes one format and knows nothing of adapters."""
