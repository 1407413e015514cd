"""The compiled steps: the only ``jax.jit`` with donation in the project."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from model import vocabulary
from model.attention import Backend
from model.batch import Batch, Program, decode_rows, unpack
from model.device_state import Counts, DeviceState, Sampled
from model.experts import dispatch_on
from model.interface import FROM_DEVICE, Family, Shapes, Variant
from model.layers.block import Backends
from model.layers.embed import embed
from model.layers.rope import frequencies, rotations
from model.logits import adjust
from model.logprobs import Scored, score
from model.positions import Positions, locate
from model.registry import Blueprint
from model.sampler import rules_of, sample
from sharding.axes import named, partition

Leaves = tuple[jax.Array, ...]
Step = Callable[..., tuple[DeviceState, "Outcome | Ended | jax.Array"]]

LOGITS = partition((None, "vocab"))
WHOLE = PartitionSpec()


class Outcome(NamedTuple):
    """What the host reads of a step; see ``StepOutput``."""

    tokens: jax.Array
    scored: Scored | None


class Ended(NamedTuple):
    """What the last of several stages gives."""

    outcome: Outcome
    last_token: jax.Array
    """int32[slots]: as the step leaves it, for the first stage of a later step."""


def build_step(program: Program, model: Blueprint, shapes: Shapes) -> Step:
    """The function to compile for ``program`` on the devices of one stage.

    It takes leaves, state and buffer. Of several stages the first takes the last tokens by slot, int32[slots], beside
    them; the others take the hidden states float32[T, hidden] that the one before has given.
    """
    finish = {Family.SCORE: finish_score}.get(
        program.family, finish_full if program.variant is Variant.FULL else finish_lean
    )

    def step(
        leaves: Leaves, state: DeviceState, buffer: jax.Array, *before: jax.Array
    ) -> tuple[DeviceState, Outcome | Ended | jax.Array]:
        batch = unpack(buffer, program, shapes)
        hidden, state = forward(program, model, shapes, leaves, state, batch, *before)
        if not model.last:
            return state, jax.lax.with_sharding_constraint(hidden, named(model.mesh, ()))
        assert state.sampled is not None, "what has the head keeps what it samples"
        sampled, outcome = finish(program, model, shapes, leaves, state.sampled, batch, hidden)
        return state._replace(sampled=sampled), outcome if model.first else Ended(outcome, sampled.last_token)

    step.__name__ = f"{program.family}_{program.variant}_{program.size}"
    return step


def forward(
    program: Program,
    model: Blueprint,
    shapes: Shapes,
    leaves: Leaves,
    state: DeviceState,
    batch: Batch,
    before: jax.Array | None = None,
) -> tuple[jax.Array, DeviceState]:
    """Hidden states float32[T, hidden] of the step's tokens behind the stage's layers, their keys and values written.

    ``before``: of several stages, what the step takes beside its buffer.
    """
    where = locate(batch, program.family, shapes)
    turns = tuple(rotations(where.position, inverse) for inverse in frequencies(model.spec))
    # computed once here, not again inside every layer's fusions
    where, turns = jax.lax.optimization_barrier((where, turns))
    module = model.merge(leaves)
    if before is None:
        assert model.first, "a later stage goes on with the hidden states of the one before"
        assert state.sampled is not None, "what has no head is given the last tokens"
        before = state.sampled.last_token
    x = embed(module.embedding[...], token_ids(batch, where, before), model.mesh) if model.first else before
    through = Backends(Backend(model, shapes).attend(program, batch, where), dispatch_on(model, where))
    done = module(x, turns, state.pool, through)
    return done.hidden, state._replace(pool=done.pool, routed=add_routed(state.routed, done.routed))


def add_routed(before: jax.Array | None, step: jax.Array | None) -> jax.Array | None:
    """What the experts have taken so far, the step's tokens added; None for a dense model."""
    return None if before is None or step is None else before + step


def token_ids(batch: Batch, where: Positions, last_token: jax.Array) -> jax.Array:
    """int32[T], with FROM_DEVICE replaced by the slot's entry of ``last_token`` int32[slots]."""
    last = last_token[batch.slots[jnp.maximum(where.row, 0)]]
    return jnp.where(batch.tokens == FROM_DEVICE, last, batch.tokens)


def logits_of(model: Blueprint, leaves: Leaves, hidden: jax.Array) -> jax.Array:
    """Logits float32[R, padded vocab]; columns beyond the vocabulary are -inf."""
    logits = model.merge(leaves).logits(hidden)
    if logits.shape[1] == model.spec.vocab_size:
        return logits
    inside = jnp.arange(logits.shape[1]) < model.spec.vocab_size
    return jnp.where(inside[None, :], logits, -jnp.inf)


def last_hidden(batch: Batch, hidden: jax.Array) -> jax.Array:
    """Hidden state of each row's last token, [R, hidden]."""
    return hidden[jnp.maximum(batch.offsets + batch.lengths - 1, 0)]


def remember(sampled: Sampled, batch: Batch, tokens: jax.Array) -> Sampled:
    """Note the sampled tokens by slot, for steps launched before the host has read them."""
    target = jnp.where(batch.sample, batch.slots, 0)
    return sampled._replace(last_token=sampled.last_token.at[target].set(tokens))


def finish_lean(
    program: Program,
    model: Blueprint,
    shapes: Shapes,
    leaves: Leaves,
    sampled: Sampled,
    batch: Batch,
    hidden: jax.Array,
) -> tuple[Sampled, Outcome]:
    """Sample by temperature, top-k, top-p and min-p."""
    pick = jax.shard_map(sample, mesh=model.mesh, in_specs=(LOGITS, WHOLE), out_specs=WHOLE, check_vma=False)
    rows, rules = last_hidden(batch, hidden), rules_of(batch)

    def draw(first: int) -> jax.Array:
        some = jax.tree.map(lambda x: x[first:], rules)
        tokens = pick(logits_of(model, leaves, rows[first:]), some)
        return jnp.pad(tokens, (first, 0))

    decode = decode_rows(program, shapes)
    if decode in (0, rows.shape[0]):
        tokens = draw(0)
    else:
        # a step of prompt pieces alone needs the head for max_pieces rows only
        tokens = jax.lax.cond(batch.num_decode > 0, partial(draw, 0), partial(draw, decode))
    return remember(sampled, batch, tokens), Outcome(tokens, None)


def finish_full(
    program: Program,
    model: Blueprint,
    shapes: Shapes,
    leaves: Leaves,
    sampled: Sampled,
    batch: Batch,
    hidden: jax.Array,
) -> tuple[Sampled, Outcome]:
    """Penalties, bias, bans and bitmask, then sampling; log probabilities of the raw distribution."""
    counts_spec = partition((None, "vocab"))

    def local(logits: jax.Array, batch: Batch, counts: Counts) -> tuple[jax.Array, Scored, Counts]:
        assert batch.top_logprobs is not None
        tokens = sample(adjust(logits, batch, counts), rules_of(batch))
        at = tokens - vocabulary.offset(logits)
        mine = batch.sample & (at >= 0) & (at < logits.shape[1])
        output = counts.output.at[jnp.where(mine, batch.slots, 0), jnp.where(mine, at, 0)].add(mine.astype(jnp.int16))
        return tokens, score(logits, tokens, batch.top_logprobs > 0), counts._replace(output=output)

    run = jax.shard_map(
        local,
        mesh=model.mesh,
        in_specs=(LOGITS, WHOLE, counts_spec),
        out_specs=(WHOLE, WHOLE, counts_spec),
        check_vma=False,
    )
    logits = logits_of(model, leaves, last_hidden(batch, hidden))
    tokens, scored, counts = run(logits, batch, sampled.counts)
    return remember(sampled._replace(counts=counts), batch, tokens), Outcome(tokens, scored)


def finish_score(
    program: Program,
    model: Blueprint,
    shapes: Shapes,
    leaves: Leaves,
    sampled: Sampled,
    batch: Batch,
    hidden: jax.Array,
) -> tuple[Sampled, Outcome]:
    """Log probability of every target of the piece."""
    assert batch.targets is not None
    run = jax.shard_map(score, mesh=model.mesh, in_specs=(LOGITS, WHOLE, WHOLE), out_specs=WHOLE, check_vma=False)
    wants = batch.targets >= 0
    scored = run(logits_of(model, leaves, hidden), jnp.maximum(batch.targets, 0), wants)
    return sampled, Outcome(jnp.zeros((1,), jnp.int32), scored)


def set_counts(
    state: DeviceState, slot: jax.Array, ids: jax.Array, prompt: jax.Array, output: jax.Array
) -> DeviceState:
    """Replace one slot's penalty counts; ``ids`` int32[n] are padded with an id beyond the vocabulary."""

    def replaced(counts: jax.Array, values: jax.Array) -> jax.Array:
        row = jnp.zeros((counts.shape[1],), counts.dtype).at[ids].add(values.astype(counts.dtype), mode="drop")
        return counts.at[slot].set(row)

    assert (sampled := state.sampled) is not None, "counts are kept where the head is"
    counts = Counts(replaced(sampled.counts.prompt, prompt), replaced(sampled.counts.output, output))
    return state._replace(sampled=sampled._replace(counts=counts))


def jitted(function: Callable[..., object], donated: int) -> "jax.stages.Wrapped":
    """``function`` compiled on demand, its argument number ``donated`` given away."""
    return jax.jit(function, donate_argnums=(donated,))
