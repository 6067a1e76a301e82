"""The prefill stage: whole prompts to KV blocks and a first token, offered to whoever decodes."""
