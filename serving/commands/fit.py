"""``radjax config fit``: what of a model fits on named hardware, and how fast it could be; nothing is loaded."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import jax
from msgspec import Struct, structs

from configs.errors import ConfigError
from configs.hardware import GPU_SHARE, Machine
from configs.load import Loaded
from configs.memory import kv_copies, pool_bytes_of, query_places, size
from configs.mesh_sizes import refuse_sizes
from configs.resolve import cache_dir, resolve, weight_dtype
from configs.schema import Distributed, EngineConfig, HardwareFacts, ModelFacts, Parallel, Resolved
from configs.stages import stage_parts
from model.counted_costs import count_costs
from model.loading.folder import ModelFolder, model_folder
from model.loading.hf_config import read_config
from model.loading.source import cached, fetch
from model.registry import facts
from model.roofline import Pace, decode_pace, prefill_pace
from model.spec import Dtype, ModelSpec
from model.step_costs import FLOAT32, Shares, StepCosts, costs_by_formula

DECODE_ROWS = (1, 8, 32, 128, 256, 512)
PREFILL_TOKENS = (512, 2048, 8192)
MAX_PROPOSALS = 8
MAX_REPLICAS = 64
"""As ``parallel.replicas`` may be."""
KEYS = ("tensor", "stages", "expert", "replicas")


class Workload(Struct, frozen=True):
    """What is asked of ``fit`` beside launch file and hardware."""

    context: int
    """Tokens of a typical request, prompt and answer."""
    memory_share: float
    """Of a device's memory that is the engine's."""


class Division(Struct, frozen=True, kw_only=True):
    """One way to divide the devices, and what comes of it. Bytes are those of one device, the fullest."""

    tensor: int
    stages: int
    expert: int
    replicas: int
    weight_bytes: int
    kv_bytes: int
    pages: int
    page_size: int
    pool_tokens: int
    """Of one replica, as the requests are."""
    longest_request: int
    context_length: int
    full_length_requests: int
    typical_requests: int
    rows: int
    """Typical requests that run at once: those that fit, and no more than may."""
    decode_tokens_per_s: float
    """Of all replicas at these rows: a limit."""
    one_row_s: float
    """For a token of a request that runs alone: a limit."""
    wasted_kv: float
    """Share of the KV pages that repeats heads."""
    query_heads: int
    """That are computed, with the zero heads that fill up."""

    @property
    def parallel(self) -> Parallel:
        """As the launch file has it."""
        return Parallel(tensor=self.tensor, stages=self.stages, expert=self.expert, replicas=self.replicas)


class StepLimit(Struct, frozen=True, kw_only=True):
    """The least time of one step."""

    kind: str
    """decode or prefill."""
    size: int
    """Rows, or tokens of a prompt."""
    memory_s: float
    arithmetic_s: float
    link_s: float
    seconds: float
    """Until all have their token, through all stages."""
    bound_by: str
    tokens_per_s: float
    """Of one replica."""


class Fit(Struct, frozen=True, kw_only=True):
    """The answer; ``--json`` prints it."""

    model: str
    parameters: int
    dtype: str
    machine: Machine
    device_bytes: int
    """That the engine has of one device."""
    workload: Workload
    proposals: tuple[Division, ...]
    """Best first."""
    possible: int
    """How many there were."""
    chosen: Division
    limits: tuple[StepLimit, ...]
    """Of ``chosen``, by what XLA counts in the programs."""


CountCosts = Callable[[ModelSpec, Parallel, Dtype], StepCosts]


@dataclass(slots=True, frozen=True)
class Fitter:
    """One model, to be tried on one machine."""

    config: EngineConfig
    name: str
    spec: ModelSpec
    machine: Machine
    workload: Workload

    @property
    def hardware(self) -> HardwareFacts:
        """What the engine would find."""
        return self.machine.facts(self.workload.memory_share)

    @property
    def dtype(self) -> Dtype:
        """Of weights, keys and values."""
        return weight_dtype(self.config.model.dtype, self.machine.device.platform)

    def divisions(self) -> list[Division]:
        """Every division that fits, best first: most tokens a second, of equals the quickest token alone."""
        found: list[Division] = []
        for parallel in all_divisions(self.machine.count, self.spec):
            try:
                found.append(self.divide(parallel))
            except ConfigError:
                continue
        return sorted(found, key=lambda one: (one.full_length_requests == 0, -one.decode_tokens_per_s, one.one_row_s))

    def divide(self, parallel: Parallel) -> Division:
        """What comes of one division.

        Raises:
          ConfigError: the model or the machine cannot be divided so, or the weights leave no room.
        """
        if (needed := parallel.devices * parallel.replicas) > self.machine.count:
            raise ConfigError(
                f"stages × expert × tensor × replicas = {needed}, more than the devices of {self.machine.name}",
                key="parallel",
            )
        model, shares = facts(self.spec), Shares(self.spec, parallel, self.dtype)
        resolved = self.resolve(parallel, model, shares)
        stages = shares.stages()
        held = [
            (part_bytes // parallel.shards, sum(pool_bytes_of(resolved, part, parallel.shards)) // parallel.shards)
            for part, part_bytes in stage_parts(model, sum(stage.weight_bytes for stage in stages), stages)
        ]
        weight_bytes, kv_bytes = max(held, key=sum)
        costs, tokens = costs_by_formula(self.spec, parallel, resolved.dtype), resolved.num_pages * resolved.page_size
        typical = resolved.num_pages // -(-min(self.workload.context, resolved.context_length) // resolved.page_size)
        rows = max(1, min(typical, resolved.max_running_requests))
        many = self.decode(costs, rows, parallel)
        copies = kv_copies(model, parallel.shards)
        return Division(
            **{key: structs.asdict(parallel)[key] for key in KEYS},
            weight_bytes=weight_bytes,
            kv_bytes=kv_bytes,
            pages=resolved.num_pages,
            page_size=resolved.page_size,
            pool_tokens=tokens,
            longest_request=min(resolved.context_length, tokens),
            context_length=resolved.context_length,
            full_length_requests=resolved.num_pages // -(-resolved.context_length // resolved.page_size),
            typical_requests=typical,
            rows=rows,
            decode_tokens_per_s=many.tokens_per_s * parallel.replicas,
            one_row_s=self.decode(costs, 1, parallel).seconds,
            wasted_kv=1 - 1 / copies,
            query_heads=query_places(model, parallel.shards),
        )

    def resolve(self, parallel: Parallel, model: ModelFacts, shares: Shares) -> Resolved:
        """What a server would decide for one replica; how many there are does not change it."""
        alone, stages = structs.replace(parallel, replicas=1), shares.stages()
        refuse_sizes(alone, model, self.machine.count)
        config = structs.replace(self.config, parallel=alone, distributed=self.hosts(alone))
        weight_bytes = sum(stage.weight_bytes for stage in stages)
        return resolve(config, self.name, self.hardware, model, weight_bytes, stages)

    def hosts(self, parallel: Parallel) -> Distributed:
        """The processes of one replica."""
        hosts = -(-parallel.devices // self.machine.device.host)
        return Distributed(hosts=hosts, coordinator="host-0:30300" if hosts > 1 else None)

    def limits(self, division: Division, costs: StepCosts) -> Iterator[StepLimit]:
        """Steps of several sizes, as far as they fit."""
        parallel, token_bytes = division.parallel, self.spec.hidden_size * FLOAT32
        most = max(1, division.typical_requests)
        for rows in sorted({*(rows for rows in DECODE_ROWS if rows <= most), division.rows}):
            yield _limit("decode", rows, self.decode(costs, rows, parallel))
        for tokens in PREFILL_TOKENS:
            if tokens <= division.longest_request:
                pace = prefill_pace(costs, tokens, token_bytes, self.machine.device, parallel)
                yield _limit("prefill", tokens, pace)

    def decode(self, costs: StepCosts, rows: int, parallel: Parallel) -> Pace:
        """A decode step of typical requests, all at their full length."""
        token_bytes = self.spec.hidden_size * FLOAT32
        return decode_pace(costs, rows, self.workload.context, token_bytes, self.machine.device, parallel)


def fit(loaded: Loaded, machine: Machine, workload: Workload, count: CountCosts) -> Fit:
    """Try a launch file on a machine.

    Where the launch file gives a size of ``parallel``, that division is looked at closely, otherwise the best one.

    Args:
      loaded: the launch file.
      machine: the hardware.
      workload: what is asked of it.
      count: counts the costs of the division that is looked at.

    Raises:
      ConfigError: the model's shape is not known here, or no division fits, or not the configured one.
    """
    spec = read_config(shape_folder(loaded.config))
    fitter = Fitter(loaded.config, loaded.name, spec, machine, workload)
    asked = any(loaded.origins[f"parallel.{key}"] != "default" for key in KEYS)
    configured = [fitter.divide(loaded.config.parallel)] if asked else []
    divisions = fitter.divisions()
    if not configured and not divisions:
        raise ConfigError(
            "no division of it holds this model and one request",
            key="--hardware",
            value=machine.name,
            suggestion=f"take more devices, or larger ones: the weights are {size(_all_weights(fitter))}",
        )
    chosen = (configured or divisions)[0]
    costs = count(spec, chosen.parallel, fitter.dtype)
    return Fit(
        model=loaded.name,
        parameters=facts(spec).num_parameters,
        dtype=fitter.dtype,
        machine=machine,
        device_bytes=fitter.hardware.memory_bytes,
        workload=workload,
        proposals=tuple(divisions[:MAX_PROPOSALS]),
        possible=len(divisions),
        chosen=chosen,
        limits=tuple(fitter.limits(chosen, costs)),
    )


def workload(machine: Machine, context: int, memory_share: float | None) -> Workload:
    """What is asked, checked.

    Raises:
      ConfigError: a number out of range.
    """
    share = memory_share if memory_share is not None else (GPU_SHARE if machine.device.platform == "gpu" else 1.0)
    if not 0 < share <= 1:
        raise ConfigError("is a share: above 0, at most 1", key="--memory-share", value=share, suggestion="0.9")
    if context < 1:
        raise ConfigError("a request has at least one token", key="--context", value=context, suggestion="2048")
    return Workload(context, share)


def counted_costs(spec: ModelSpec, parallel: Parallel, dtype: Dtype) -> StepCosts:
    """Costs from programs lowered for one CPU device; no accelerator is touched."""
    jax.config.update("jax_platforms", "cpu")  # pyright: ignore[reportUnknownMemberType]  jax has no type here
    return count_costs(spec, parallel, dtype)


def shape_folder(config: EngineConfig) -> ModelFolder:
    """The folder with the model's config.json; nothing is downloaded.

    Raises:
      ConfigError: it is not on this machine.
    """
    source, cache = config.model.source, Path(cache_dir(config.model.cache_dir)).expanduser()
    if not source.startswith(("pypi:", "hub:")):
        return fetch(source, cache, lambda what, done, total: None)
    found = next((folder for origin, folder in cached(cache) if origin.source == source), None)
    if found is None:
        raise ConfigError(
            "the shape of this model is not on this machine",
            key="model.source",
            value=source,
            suggestion=f"bring it with 'radjax model pull {source}', or name a folder that has its config.json",
        )
    return model_folder(found)


def all_divisions(devices: int, spec: ModelSpec) -> Iterator[Parallel]:
    """Every way to use all ``devices``: replicas that are alike, of stages, of experts, of shards."""
    for replica in divisors(devices):
        for stages in divisors(replica):
            for expert in divisors(replica // stages) if spec.experts is not None else (1,):
                tensor, replicas = replica // stages // expert, devices // replica
                if stages <= spec.num_layers and replicas <= MAX_REPLICAS:
                    yield Parallel(tensor=tensor, stages=stages, expert=expert, replicas=replicas)


def divisors(number: int) -> tuple[int, ...]:
    """Those of ``number``, small ones first."""
    return tuple(size for size in range(1, number + 1) if number % size == 0)


def _all_weights(fitter: Fitter) -> int:
    return sum(stage.weight_bytes for stage in Shares(fitter.spec, Parallel(), fitter.dtype).stages())


def _limit(kind: str, size: int, pace: Pace) -> StepLimit:
    return StepLimit(
        kind=kind,
        size=size,
        memory_s=pace.stage.memory_s,
        arithmetic_s=pace.stage.arithmetic_s,
        link_s=pace.stage.link_s,
        seconds=pace.seconds,
        bound_by=pace.stage.bound_by,
        tokens_per_s=pace.tokens_per_s,
    )
