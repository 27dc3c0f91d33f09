"""Serving an X-LLM: an API that OpenAI's clients speak, and a web demo."""
