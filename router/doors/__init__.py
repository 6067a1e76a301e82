"""The doors: gRPC for programs, HTTP as OpenAI speaks it, and one for operators."""
