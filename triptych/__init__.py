"""Triptych: encode, prefill and decode of vision-language models as three pools."""

__version__ = "0.1.0"
