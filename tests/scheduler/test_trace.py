from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.commands import Generate
from scheduler.trace import Arrival, Synthetic, TraceError, read_trace

VOCAB = 1000
GOOD = '{"arrival_s": 1, "prompt_len": 4, "max_tokens": 2}'


def prompt(arrival: Arrival) -> list[int]:
    assert isinstance(arrival.command, Generate)
    return arrival.command.prompt


def read(tmp_path: Path, *lines: str) -> list[Arrival]:
    path = tmp_path / "trace.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return list(read_trace(path, VOCAB))


def test_a_line_says_when_a_request_comes_what_it_shares_and_how_much_it_says(tmp_path: Path) -> None:
    one, two, three = read(
        tmp_path,
        '{"arrival_s": 0.5, "prompt_len": 3, "prefix": "a", "prefix_len": 5, "max_tokens": 9, "output_tokens": 4}',
        "",
        '{"arrival_s": 0.5, "prompt_len": 2, "prefix": "a", "prefix_len": 6, "max_tokens": 9, "extra_key": "k"}',
        '{"arrival_s": 2, "prompt": [7, 8], "max_tokens": 1, "priority": 3, "routing_key": "r"}',
    )
    assert (one.at_ns, one.output_tokens, len(prompt(one))) == (500_000_000, 4, 8)
    assert prompt(one)[:5] == prompt(two)[:5]
    assert prompt(one)[5:] != prompt(two)[5:8]
    assert prompt(three) == [7, 8]
    assert isinstance(three.command, Generate)
    assert isinstance(two.command, Generate)
    assert (three.command.priority, three.command.routing_key, two.command.extra_key) == (3, "r", "k")
    assert len({arrival.command.rid for arrival in (one, two, three) if isinstance(arrival.command, Generate)}) == 3


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("x", "JSON is malformed"),
        ("{}", "missing required field `arrival_s`"),
        ('{"arrival_s": 1, "max_tokens": 2}', "give prompt, or prompt_len"),
        ('{"arrival_s": 1, "max_tokens": 2, "promt_len": 2}', "unknown field `promt_len`"),
        ('{"arrival_s": 1, "max_tokens": 2, "prompt": []}', "length >= 1"),
        ('{"arrival_s": 1, "max_tokens": 2, "prompt": [1], "prompt_len": 2}', "not both"),
        ('{"arrival_s": 1, "max_tokens": 2, "prompt_len": 2, "prefix_len": 2}', "prefix_len wants prefix"),
        ('{"arrival_s": 1, "max_tokens": 2, "prompt_len": 99999999}', "1048576"),
        ('{"arrival_s": 0.5, "max_tokens": 2, "prompt_len": 2}', "before the line above"),
        ('{"arrival_s": -1, "max_tokens": 2, "prompt_len": 2}', ">= 0"),
        ('{"arrival_s": 1, "max_tokens": 2, "prompt_len": 2, "output_tokens": 0}', ">= 1"),
    ],
)
def test_a_bad_line_is_refused_with_its_file_and_number(line: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(TraceError) as refused:
        read(tmp_path, GOOD, "", line)
    assert f"{tmp_path / 'trace.jsonl'}:3: " in str(refused.value)
    assert said in str(refused.value)


def test_a_trace_without_requests_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="holds no request"):
        read(tmp_path, "")


LENGTHS = st.tuples(st.integers(1, 40), st.integers(0, 40)).map(lambda pair: (pair[0], sum(pair)))


@given(
    prompts=LENGTHS,
    outputs=LENGTHS,
    prefixes=st.integers(0, 4),
    prefix_len=st.integers(1, 32),
    rate=st.sampled_from([None, 0.5, 1e4]),
    seed=st.integers(0, 99),
)
def test_a_synthetic_workload_keeps_its_numbers(
    prompts: tuple[int, int], outputs: tuple[int, int], prefixes: int, prefix_len: int, rate: float | None, seed: int
) -> None:
    workload = Synthetic(
        requests=12,
        rate=rate,
        prompt_len=prompts,
        output_len=outputs,
        prefixes=prefixes,
        prefix_len=prefix_len,
        seed=seed,
    )
    drawn = list(workload.arrivals(VOCAB))
    assert drawn == list(workload.arrivals(VOCAB))
    shared = prefix_len if prefixes else 0
    assert len(drawn) == 12
    assert all(prompts[0] <= len(prompt(one)) - shared <= prompts[1] for one in drawn)
    assert all(0 <= token < VOCAB for one in drawn for token in prompt(one))
    assert [one.at_ns for one in drawn] == sorted(one.at_ns for one in drawn)
    assert (drawn[-1].at_ns > 0) is (rate is not None)
    limits = [one.command.params.max_new_tokens for one in drawn if isinstance(one.command, Generate)]
    assert all(outputs[0] <= limit <= outputs[1] for limit in limits)
    assert len({tuple(prompt(one)[:shared]) for one in drawn}) <= max(prefixes, 1)
