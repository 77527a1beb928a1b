"""GGUF: what a merged model is called there, how it is typed, and how its blocks are made."""
