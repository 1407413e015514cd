"""The free list of request slots: rows of the device's per-request state."""

from model.interface import SlotId


class Slots:
    """Hands out the slots 1 to ``num_slots``; slot 0 is the target of padding and never free."""

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self._free = [SlotId(slot) for slot in range(num_slots, 0, -1)]

    def __len__(self) -> int:
        return len(self._free)

    def take(self) -> SlotId:
        """Take a slot; there must be one."""
        return self._free.pop()

    def give(self, slot: SlotId) -> None:
        """Return a slot. The caller no longer owns it."""
        self._free.append(slot)

    def slots(self) -> tuple[SlotId, ...]:
        """The free slots, for checks."""
        return tuple(self._free)
