"""The encode stage: pictures to visual tokens, offered to whoever prefills with them."""
