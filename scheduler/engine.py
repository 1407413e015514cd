"""The engine: five verbs on one circle, receive -> plan -> launch -> commit -> emit.

No verb calls another; ``scheduler.loop`` is the only caller.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from model.interface import Family, Runner
from scheduler.batch_builder import BatchBuilder
from scheduler.charges import Charges
from scheduler.commands import Reason, StateValue
from scheduler.control import Control
from scheduler.draft import Budgets
from scheduler.invariants import check, faults, prove
from scheduler.observe import Committed, Monitor
from scheduler.order import Order, Queue
from scheduler.planner import Plan, View
from scheduler.planner import plan as make_plan
from scheduler.port import Answer, Port
from scheduler.preemption import Preemption
from scheduler.radix_cache import Hit
from scheduler.request import Request
from scheduler.results import Results, Step
from scheduler.roster import Roster
from scheduler.state import dump_state
from scheduler.step_log import describe
from scheduler.token_ratio import TokenRatio


@dataclass(slots=True, frozen=True)
class Policy:
    """Choices that shape every plan."""

    order: Order
    token_ratio: TokenRatio
    check_every_step: bool
    """Prove the invariants after every step, not only when idle."""
    preemption: Preemption | None = None
    """When running requests give way to more urgent ones; None: never."""
    budgets: Budgets = Budgets()
    order_seed: int = 0
    strict: bool = True
    """A leak that is found while the engine rests ends it; otherwise it is reported and counted."""


PAUSED_S = 10.0
"""How long the engine sleeps at most in a pause, so that the time-outs of requests are seen."""
STALL_S = 0.02
"""How long the engine sleeps at most while all requests wait for the storage, so that their time-outs are seen."""


class Engine:
    """Eight collaborators and five verbs."""

    def __init__(
        self,
        port: Port,
        roster: Roster,
        policy: Policy,
        builder: BatchBuilder,
        runner: Runner,
        results: Results,
        control: Control,
        monitor: Monitor,
    ) -> None:
        self.handlers = control.handlers
        """Who carries out each command; before the loop begins, those who can do more take theirs."""
        self.occupancy = roster.occupancy
        """How full it is now."""
        self._port = port
        self._roster = roster
        self._policy = policy
        self._builder = builder
        self._runner = runner
        self._results = results
        self._control = control
        self._monitor = monitor
        self._step = 0
        self._now_ns = 0
        self._last_family: Family | None = None
        self._last_prompts: Family | None = None
        self._charges = Charges()
        self._rested = True

    @property
    def serving(self) -> bool:
        """Whether the loop goes on."""
        return not self._control.shut

    def receive(self) -> list[Answer]:
        """Read and handle all commands that wait; blocks for the first while there is nothing else to do."""
        pause = self._control.pause
        if not pause.pending and (self._roster.idle or pause.mode is not None):
            if not self._rested:
                self._rest()
            tick = self._port.wait(None if self._roster.idle else PAUSED_S)
        elif self._roster.stalled:
            tick = self._port.wait(STALL_S)
        else:
            tick = self._port.poll()
        self._now_ns = tick.now_ns
        self._monitor.tell(tick)
        answers: list[Answer] = self._roster.completed(tick.completions, tick.now_ns)
        self._rested = self._rested and not tick.completions
        for origin, command in tick.commands:
            self._rested = False
            answers += self._control.handle(origin, command, tick.now_ns)
        answers += self._control.expire(tick.now_ns)
        if pause.pending and pause.settled:
            self._rest()  # figures and events are out before anybody hears of the pause (documents: P-1, P-2, P-3)
            answers += pause.rested()
        return answers

    def plan(self) -> Plan:
        """Decide what comes next; changes nothing."""
        roster, policy = self._roster, self._policy
        view = View(
            running=list(roster.running.values()),
            waiting=self._ordered(),
            free_slots=roster.kv.free_slots,
            available=roster.kv.available(),
            peek=self._peek,
            reclaimable=roster.kv.reclaimable,
            shapes=self._runner.shapes,
            max_rows=self._control.tuning.values.max_rows,
            token_ratio=policy.token_ratio.value,
            last_family=self._last_family,
            last_prompts=self._last_prompts,
            preemption=policy.preemption,
            budgets=policy.budgets,
            pause=self._control.pause.mode,
            step=self._step,
        )
        return make_plan(view)

    def launch(self, plan: Plan) -> Step | None:
        """Carry out a plan and start its step; None if it has no work. Never blocks on the device."""
        self._monitor.tell(plan)
        self._move(plan)
        self._charges.charge(plan, self._control.fresh, self._control.pause.mode is not None, self._now_ns)
        if not plan.size:
            if plan.idle and self._control.pause.mode is None:
                rows = self._roster.running.values()
                assert not self._roster.running or any(row.unread for row in rows), "the plan makes no progress"
            return None
        self._provide(plan)
        self._step += 1
        step = self._builder.build(self._step, plan)
        try:
            handle = self._runner.launch(step)
        except Exception as error:
            error.add_note(describe(plan))
            raise
        self._monitor.launched(step)
        self._advance(plan)
        self._last_family = plan.family
        if plan.pieces:
            self._last_prompts = plan.family
        if plan.decode:
            self._policy.token_ratio.decay()
        return Step(plan, handle)

    def commit(self, step: Step) -> list[Answer]:
        """Wait for a step and apply what it computed. The only blocking read of the device."""
        try:
            output = step.handle.result()
            self._monitor.tell(Committed(step.plan, output))
            answers = self._results.commit(step.plan, output, self._now_ns)
        except Exception as error:
            error.add_note(describe(step.plan))
            raise
        if self._policy.check_every_step:
            check(self._roster)
        self._report()
        return answers

    def state(self) -> dict[str, StateValue]:
        """See ``dump_state``."""
        return dump_state(self._roster, self._monitor, self._now_ns)

    def close(self) -> None:
        """Let go of what works beside this thread. The last call."""
        if self._roster.tiers is not None:
            self._roster.tiers.host.copies.close()

    def emit(self, answers: list[Answer]) -> None:
        """Send answers to the frontends."""
        if answers:
            self._port.send(answers)

    def _ordered(self) -> Iterable[Request]:
        """The queue in the order in which it is tried; as it came when nobody can be admitted."""
        roster, policy = self._roster, self._policy
        waiting = roster.waiting.values()
        if not waiting or not (roster.kv.free_slots or policy.preemption):
            return waiting
        running, page_size, passed_over = roster.running.values(), roster.kv.page_size, policy.budgets.max_passed_over
        seed, step = policy.order_seed, self._step
        queue = Queue(waiting, len(waiting), running, self._peek, page_size, seed, step, passed_over, roster.levels)
        return policy.order(queue)

    def _peek(self, request: Request) -> Hit:
        return self._roster.kv.peek(request.tokens(0, request.match_end), request.namespace)

    def _rest(self) -> None:
        """What is due when the last request has gone, or when generation has come to stand still."""
        self._rested = True
        if self._roster.idle:
            self._policy.token_ratio.reset()
        self._monitor.rest()
        self._monitor.leaked(prove(self._roster) if self._policy.strict else faults(self._roster))
        self._report()

    def _report(self) -> None:
        ratio, paused = self._policy.token_ratio.value, self._control.pause.mode is not None
        self._monitor.report(self._step, self._now_ns, ratio, self._runner.compiled_late(), paused)

    def _move(self, plan: Plan) -> None:
        """Move requests between queue and running. All admitted prefixes are locked before any page is evicted."""
        paused = self._control.pause.mode is not None
        for request in plan.retract:
            self._roster.requeue(request)
            request.waits.change(Reason.PAUSED if paused else Reason.RETRACTED, self._now_ns)
        for request in plan.preempt:
            self._roster.requeue(request)
            request.preemptions += 1
            request.waits.change(Reason.PREEMPTED, self._now_ns, plan.newcomer and plan.newcomer.rid)
        if not paused:
            self._monitor.retracted(plan)
        if plan.retract and not paused:
            self._policy.token_ratio.retracted(self._roster.running.values())
        for request, times in plan.passed:
            request.passed_over += times
        for request in plan.admit:
            self._roster.admit(request)
            self._builder.bind(request)
            request.waits.change(request.work, self._now_ns)
            if not request.retractions:
                request.admitted_ns = self._now_ns
                request.cached_tokens = request.computed
            self._monitor.admitted(request)
        self._roster.load(plan.admit)

    def _provide(self, plan: Plan) -> None:
        """Give every row its pages. Pages that decode rows have filled go to the tree when the next is taken."""
        kv = self._roster.kv
        for request in plan.decode:
            lease = request.lease
            if lease is not None and request.computed >= lease.capacity:
                kv.publish(lease, request.tokens(lease.published * kv.page_size, request.known))
                kv.grow(lease, request.computed + 1)
        for request, start, length, _ in plan.pieces:
            if request.lease is not None:
                kv.grow(request.lease, start + length)

    def _advance(self, plan: Plan) -> None:
        """Note what is in flight now, and publish the pages of prompts that are full."""
        step, kv, prefill = self._step, self._roster.kv, Reason.PREFILL
        for request in plan.decode:
            request.computed += 1
            request.inflight += 1
            request.unread += 1
            request.planned = step
            if request.waits.reason is prefill and request.output:  # its first token was read before this turn
                request.waits.change(Reason.DECODE, self._now_ns)
        for request, start, length, samples in plan.pieces:
            request.computed = start + length
            request.inflight += samples
            request.unread += 1
            request.planned = step
            request.waits.piece(start, start + length, self._now_ns)
            if plan.family is Family.SCORE:
                request.next_score += length
            lease = request.lease
            if lease is not None:
                kv.publish(lease, request.tokens(lease.published * kv.page_size, request.known))
