"""The workloads: random token ids of given lengths, so that no tokenizer and no luck of text is in the figures."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

LOWEST_ID: Final = 1000
"""Below lie special tokens and single bytes, in most vocabularies."""


@dataclass(slots=True, frozen=True)
class Workload:
    """Lengths in tokens."""

    concurrency: int
    num_prompts: int
    prompt_len: int
    output_len: int
    prefix_len: int = 0
    """Shared start of the prompt; ``prompt_len`` comes after it."""
    num_prefixes: int = 0

    def prompts(self, seed: int, vocab_size: int) -> list[list[int]]:
        """The prompts, the same for the same seed; prefixes take turns."""
        source = random.Random(seed)

        def ids(count: int) -> list[int]:
            return [source.randrange(LOWEST_ID, vocab_size) for _ in range(count)]

        prefixes = [ids(self.prefix_len) for _ in range(self.num_prefixes)] or [[]]
        return [prefixes[number % len(prefixes)] + ids(self.prompt_len) for number in range(self.num_prompts)]


WORKLOADS: Final[Mapping[str, Workload]] = MappingProxyType(
    {
        "single": Workload(concurrency=1, num_prompts=8, prompt_len=64, output_len=64),
        "eight": Workload(concurrency=8, num_prompts=32, prompt_len=128, output_len=64),
        "many": Workload(concurrency=32, num_prompts=96, prompt_len=128, output_len=64),
        "prompt": Workload(concurrency=4, num_prompts=16, prompt_len=1024, output_len=8),
        "prefix": Workload(
            concurrency=32, num_prompts=96, prompt_len=32, output_len=64, prefix_len=512, num_prefixes=4
        ),
    }
)
