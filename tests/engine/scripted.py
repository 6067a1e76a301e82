"""A model in a few lines over real block tables: KV is a chain of hashes, a token a hash of it all.

Any wrong block, row, position or order changes the tokens, and ``expected`` knows the right ones.
"""

from triptych.core.handoff import JobHeader, LanguageJob
from triptych.core.hashing import digest
from triptych.core.ids import Handle, JobId, SessionId
from triptych.core.plan import Drawn, LanguageResult
from triptych.core.request import Item, Prompt, Sampling, StopRule

VOCABULARY = 64
EMBEDDING_SIZE = 2
"""Rows in an embedding block."""
URGENCY = ("slo_ttft_s", "slo_tpot_s", "priority", "later_s")


def picture(name, offset, num_tokens):
    return Item(digest("item", name.encode()), offset, num_tokens, (1, 2, 2 * num_tokens))


def make_job(name, tokens, *, items=(), max_tokens=5, stop=(), generated=(), **options):
    budget_s = options.pop("budget_s", 1e9)
    salt = options.pop("salt", b"")
    sampling = options.pop("sampling", Sampling())
    urgency = {key: options.pop(key) for key in URGENCY if key in options}
    return LanguageJob(
        JobHeader(JobId(name), SessionId("session"), 0, budget_s, salt, **urgency),
        Prompt(tuple(tokens), tuple(items)),
        sampling,
        StopRule(max_tokens, tuple(stop)),
        tuple(generated),
        **options,
    )


def publishing(name, tokens, **options):
    return make_job(name, tokens, publish=Handle(f"handle of {name}"), **options)


def row(key, index):
    return hash((key, index))


def chain(before, position, content):
    return hash((before, position, content))


def contents(job, tokens):
    """What each position of ``tokens`` stands for: a token, or a row of a picture."""
    result = list(tokens)
    for item in job.prompt.items:
        for index in range(item.num_tokens):
            result[item.offset + index] = row(item.key, index)
    return result


def kv_of(job, tokens):
    """KV of every position, computed at once and without blocks."""
    values, before = [], hash(job.header.salt)
    for position, content in enumerate(contents(job, tokens)):
        before = chain(before, position, content)
        values.append(before)
    return values


def next_token(values):
    return hash(tuple(values)) % VOCABULARY


def expected(job):
    """All output tokens of ``job``'s request, those of earlier attempts included."""
    tokens = [*job.prompt.token_ids, *job.generated]
    while True:
        output = tokens[len(job.prompt) :]
        if output and (output[-1] in job.stop.token_ids or len(output) >= job.stop.max_tokens):
            return output
        tokens.append(next_token(kv_of(job, tokens)))


class ScriptedExecutor:
    """Executes language plans on dictionaries."""

    def __init__(self, block_size):
        self.block_size = block_size
        self.kv = {}
        self.rows = {}
        self.plans = []

    def place(self, blocks, position):
        return blocks[position // self.block_size], position % self.block_size

    def write_kv(self, job, tokens, blocks, start, end):
        """What a transfer from another instance would write."""
        for position, value in list(enumerate(kv_of(job, tokens)))[start:end]:
            self.kv[self.place(blocks, position)] = value

    def write_rows(self, item, blocks):
        """What an encoder would write."""
        for index in range(item.num_tokens):
            place = blocks[index // EMBEDDING_SIZE], index % EMBEDDING_SIZE
            self.rows[place] = row(item.key, index)

    def execute(self, plan):
        self.plans.append(plan)
        for segment in plan.segments:
            self.write(segment)
        return LanguageResult(tuple(map(self.draw, plan.segments)), 0.25)

    def write(self, segment):
        content = list(segment.tokens)
        for placed in segment.items:
            item = placed.item
            for position in range(max(item.offset, segment.start), min(item.end, segment.end)):
                index = position - item.offset
                place = placed.blocks[index // EMBEDDING_SIZE], index % EMBEDDING_SIZE
                content[position - segment.start] = self.rows[place]
        before = hash(segment.salt)
        if segment.start:
            before = self.kv[self.place(segment.blocks, segment.start - 1)]
        for position, value in enumerate(content, segment.start):
            before = self.kv[self.place(segment.blocks, position)] = chain(before, position, value)

    def draw(self, segment):
        if segment.draw is None:
            return None
        assert segment.draw.position == segment.end
        values = [self.kv[self.place(segment.blocks, position)] for position in range(segment.end)]
        return Drawn(next_token(values))
