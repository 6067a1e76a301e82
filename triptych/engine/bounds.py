"""What a language engine refuses at its door. Knows no blocks and no other jobs."""

from itertools import pairwise

from triptych.core.errors import RequestError
from triptych.core.handoff import LanguageJob


def check_job(job: LanguageJob, max_tokens: int, *, computes_items: bool) -> None:
    """Raise RequestError if no instance of this kind could ever serve ``job``. One that computes no
    pictures may still continue a prompt whose pictures are all believed to be in its cache."""
    prompt, stop = job.prompt, job.stop
    if not prompt.token_ids:
        raise RequestError("must not be empty", field="prompt")
    if stop.max_tokens < 1:
        raise RequestError("must be at least 1", field="max_tokens")
    if len(prompt) + max(stop.max_tokens, len(job.generated)) > max_tokens:
        raise RequestError(
            f"prompt and output together exceed {max_tokens} tokens",
            field="max_tokens",
            status="too_large",
        )
    if job.kv is not None and job.publish is not None:
        raise RequestError("a job cannot both receive and publish KV", field="publish")
    needs_items = not job.items or any(one.ref is not None for one in job.items)
    if prompt.items and job.kv is None and not computes_items and needs_items:
        raise RequestError("this instance computes no prompts with pictures", field="items")
    if any(item.num_tokens < 1 or item.offset < 0 for item in prompt.items) or any(
        before.end > after.offset for before, after in pairwise(prompt.items)
    ):
        raise RequestError("must be in order and not overlap", field="items")
    if prompt.items and prompt.items[-1].end > len(prompt):
        raise RequestError("must lie within the prompt", field="items")
