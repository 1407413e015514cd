"""Hybrid pools: whether layers with a sliding window get a page group of their own, and how many pages it has. Pure."""

from typing import NamedTuple

from configs.errors import ConfigError
from configs.schema import Cache, Choice, ModelFacts


class Hybrid(NamedTuple):
    """The decision."""

    window: int
    """Tokens that the window group's layers see; 0: all layers share one group."""
    choices: tuple[Choice, ...]


def needed_pages(window: int, page_size: int) -> int:
    """Pages before a page border that a token behind it sees, where each token sees ``window`` tokens with itself."""
    return -(-(window - 1) // page_size)


def least_window_pages(window: int, page_size: int, max_inflight: int) -> int:
    """Window pages with which a request that runs alone always goes on.

    When it needs a page it holds those it sees, the one it has just filled, and those that it filled while its newest
    tokens were in flight.
    """
    return needed_pages(window, page_size) + 2 + -(-max(0, max_inflight - 1) // page_size)


def decide_hybrid(cache: Cache, model: ModelFacts, context_length: int) -> Hybrid:
    """Whether there are two page groups, and why.

    Raises:
        ConfigError: there are, and a host tier is asked for.
    """
    if not model.sliding_layers:
        return Hybrid(0, ())
    window = 0
    slide = f"{model.sliding_layers} of {model.num_layers} layers see {model.sliding_window:,} tokens"
    if not cache.hybrid:
        reason = f"as configured, though {slide}"
    elif model.sliding_layers == model.num_layers:
        reason = f"no layer sees more than {model.sliding_window:,} tokens, so that there is nothing to divide"
    elif context_length <= model.sliding_window:
        reason = f"the window of {model.sliding_window:,} tokens holds the whole context"
    else:
        window, reason = model.sliding_window, f"{slide}, and pages behind that are freed"
    if window and cache.host:
        raise ConfigError(
            "the host tier knows one page group, and the sliding layers of this model have one of their own",
            key="cache.host",
            value=True,
            suggestion="set cache.hybrid: false, or leave cache.host at false",
        )
    return Hybrid(window, (Choice("cache.hybrid", bool(window), reason),))


def window_page_bytes(a_page: int, model: ModelFacts) -> int:
    """Of ``a_page`` bytes, K and V of every layer, those of the sliding layers."""
    return a_page // model.num_layers * model.sliding_layers


def bytes_a_full_page(a_page: int, model: ModelFacts, ratio: float) -> int:
    """Bytes of the pool for each full page: those of the full layers, and its share of window pages."""
    sliding = window_page_bytes(a_page, model)
    return a_page - sliding + round(ratio * sliding)


def count_window_pages(num_pages: int, ratio: float, least: int) -> int:
    """Pages of the window group beside ``num_pages`` full ones."""
    return min(num_pages, max(least, int(num_pages * ratio)))
