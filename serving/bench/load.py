"""Run a workload against a server and sum up what came back."""

import asyncio
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from msgspec import Struct

from serving.bench.client import Answer, Server, ServerRefused, complete
from serving.bench.workloads import Workload


class Figures(Struct, frozen=True, kw_only=True):
    """One run of one workload. Milliseconds; an inter-token gap lies between two chunks of one answer."""

    workload: str
    completed: int
    failed: int
    seconds: float
    prompt_tokens: int
    output_tokens: int
    out_tok_s: float
    all_tok_s: float
    ttft_p50_ms: float
    ttft_p99_ms: float
    tpot_p50_ms: float
    """Time per output token after the first, median over requests."""
    itl_p50_ms: float
    itl_p99_ms: float
    e2e_p50_ms: float


@dataclass(slots=True, frozen=True)
class Target:
    """A model on a server."""

    server: Server
    model: str
    vocab_size: int


async def run(target: Target, name: str, workload: Workload, seed: int) -> Figures:
    """Send the workload's prompts with its concurrency."""
    prompts = iter(workload.prompts(seed, target.vocab_size))
    answers: list[Answer] = []
    failures: list[str] = []
    start = time.perf_counter()
    await asyncio.gather(
        *(_worker(target, prompts, workload.output_len, answers, failures) for _ in range(workload.concurrency))
    )
    return summary(name, answers, len(failures), time.perf_counter() - start)


async def warm_up(target: Target, workload: Workload) -> None:
    """Two requests like the workload's, with prompts that it does not use."""
    for prompt in workload.prompts(-1, target.vocab_size)[:2]:
        await complete(target.server, target.model, prompt, workload.output_len)


def summary(name: str, answers: Sequence[Answer], failed: int, seconds: float) -> Figures:
    """Reduce the answers of a run that took ``seconds``."""
    prompt_tokens = sum(answer.prompt_tokens for answer in answers)
    output_tokens = sum(answer.output_tokens for answer in answers)
    first = [answer.first_s for answer in answers]
    gaps = [late - early for answer in answers for early, late in zip(answer.chunk_s, answer.chunk_s[1:], strict=False)]
    per_token = [
        (answer.end_s - answer.first_s) / (answer.output_tokens - 1) for answer in answers if answer.output_tokens > 1
    ]
    return Figures(
        workload=name,
        completed=len(answers),
        failed=failed,
        seconds=round(seconds, 3),
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        out_tok_s=round(output_tokens / seconds, 1),
        all_tok_s=round((prompt_tokens + output_tokens) / seconds, 1),
        ttft_p50_ms=percentile_ms(first, 50),
        ttft_p99_ms=percentile_ms(first, 99),
        tpot_p50_ms=percentile_ms(per_token, 50),
        itl_p50_ms=percentile_ms(gaps, 50),
        itl_p99_ms=percentile_ms(gaps, 99),
        e2e_p50_ms=percentile_ms([answer.end_s for answer in answers], 50),
    )


def percentile_ms(seconds: Sequence[float], percent: int) -> float:
    """The percentile in milliseconds, interpolated; 0 for no values."""
    if len(seconds) < 2:
        return round(1000 * sum(seconds), 2)
    return round(1000 * statistics.quantiles(seconds, n=100, method="inclusive")[percent - 1], 2)


def table(rows: Sequence[Figures]) -> Iterator[str]:
    """Lines for people."""
    names = ("out tok/s", "all tok/s", "TTFT p50", "TTFT p99", "TPOT p50", "ITL p50", "ITL p99")
    yield f"{'workload':9}{'done':>6}" + "".join(f"{name:>11}" for name in names) + "   (ms)"
    for row in rows:
        yield (
            f"{row.workload:9}{row.completed:6}{row.out_tok_s:11.1f}{row.all_tok_s:11.1f}{row.ttft_p50_ms:11.1f}"
            f"{row.ttft_p99_ms:11.1f}{row.tpot_p50_ms:11.1f}{row.itl_p50_ms:11.1f}{row.itl_p99_ms:11.1f}"
        )


async def _worker(
    target: Target, prompts: Iterator[list[int]], output_len: int, answers: list[Answer], failures: list[str]
) -> None:
    for prompt in prompts:
        try:
            answers.append(await complete(target.server, target.model, prompt, output_len))
        except (ServerRefused, OSError, ValueError, asyncio.IncompleteReadError) as error:
            failures.append(str(error))
