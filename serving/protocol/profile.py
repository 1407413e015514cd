"""``POST /start_profile`` as a struct; null is the default. Fields of benchmarks that mean nothing here are ignored."""

from typing import Annotated

from msgspec import Meta, Struct, structs

from scheduler.commands import Activity, Stage, StartProfile, StepCount

UNSUPPORTED: dict[str, tuple[object, ...]] = {"merge_profiles": (), "profile_prefix": ()}


class StartProfileRequest(Struct, frozen=True, kw_only=True):
    """The fields of ``StartProfile``."""

    output_dir: Annotated[str, Meta(min_length=1, max_length=4096)] | None = None
    start_step: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    num_steps: StepCount | None = None
    activities: Annotated[list[Activity], Meta(min_length=1, max_length=3)] | None = None
    with_stack: bool | None = None
    record_shapes: bool | None = None
    profile_by_stage: bool | None = None
    profile_stages: Annotated[list[Stage], Meta(min_length=1, max_length=2)] | None = None
    profile_id: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,64}$")] | None = None
    wait_steps: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    warmup_steps: Annotated[int, Meta(ge=0, le=10_000)] | None = None
    active_steps: StepCount | None = None
    repeat: Annotated[int, Meta(ge=1, le=100)] | None = None

    def command(self, call: str) -> StartProfile:
        """What the engine is asked."""
        given = {name: value for name, value in structs.asdict(self).items() if value is not None}
        for name in given.keys() & {"activities", "profile_stages"}:
            given[name] = tuple(given[name])
        return StartProfile(call=call, **given)


class ProfileReply(Struct, frozen=True, omit_defaults=True):
    """What became of it."""

    success: bool
    message: str
    output_dir: str = ""
    """Where traces go; of one that was started."""
