from hypothesis import given
from hypothesis import strategies as st

from serving.stop_strings import StopFinder

TEXT = st.text(alphabet="ab", max_size=40)
STOPS = st.lists(st.text(alphabet="ab", min_size=1, max_size=5), min_size=1, max_size=4, unique=True)


def plain_search(text: str, stops: list[str]) -> tuple[str, str | None]:
    """Cut at the stop string that is complete first, the longest of those."""
    for end in range(len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            matched = max(complete, key=len)
            return text[: end - len(matched)], matched
    return text, None


@given(text=TEXT, stops=STOPS, cuts=st.lists(st.integers(1, 6), max_size=40))
def test_any_cutting_of_the_text_gives_what_plain_search_gives(text, stops, cuts):
    finder = StopFinder(tuple(stops))
    shown, matched, rest = "", None, text
    for size in [*cuts, len(text)]:
        found = finder.push(rest[:size])
        rest = rest[size:]
        shown, matched = shown + found.text, found.matched
        if matched is not None:
            break
    if matched is None:
        shown += finder.finish()
    assert (shown, matched) == plain_search(text, stops)


@given(text=TEXT, stops=STOPS)
def test_nothing_is_shown_that_a_stop_string_could_still_take_back(text, stops):
    finder = StopFinder(tuple(stops))
    shown = ""
    for at, char in enumerate(text):
        found = finder.push(char)
        shown += found.text
        if found.matched is not None:
            return
        held = text[len(shown) : at + 1]
        assert not held or any(stop.startswith(held) for stop in stops)
        assert not any(text[at + 1 - k : at + 1] == stop[:k] for stop in stops for k in range(len(held) + 1, len(stop)))
