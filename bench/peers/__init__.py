"""``python -m bench peers``: this server beside others on one machine, over HTTP, in turns."""
