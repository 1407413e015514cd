"""What running requests are expected to take of the pool."""

from hypothesis import given
from hypothesis import strategies as st

from scheduler.estimate import RESERVED_TOKENS, Course, lasts


@given(courses=st.lists(st.builds(Course, st.integers(1, 12), st.integers(0, 12)), min_size=1, max_size=6))
def test_the_pool_lasts_exactly_if_no_step_of_a_simulation_runs_short(courses: list[Course]) -> None:
    def left_after(step: int, free: int) -> tuple[float, int]:
        going = [course for course in courses if course.tokens_left >= step]
        ended = sum(course.tokens_freed for course in courses if course.tokens_left < step)
        return free + ended - step * len(going), len(going)

    steps = range(1, max(int(course.tokens_left) for course in courses) + 1)
    for free in range(80):
        after = [left_after(step, free) for step in steps]
        enough = all(tokens > RESERVED_TOKENS * going for tokens, going in after)
        assert lasts(sorted(courses), len(courses), free) == enough
