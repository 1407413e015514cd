"""Models and machines for tests."""

from configs.schema import HardwareFacts, ModelFacts

SMOLLM2 = ModelFacts(
    architecture="llama",
    num_layers=30,
    num_heads=9,
    num_kv_heads=3,
    head_dim=64,
    hidden_size=576,
    vocab_size=49152,
    context_length=8192,
    num_parameters=134_515_008,
    dtype="bfloat16",
    feed_forward_sizes=(1536,),
)
SMOLLM2_BYTES = 2 * SMOLLM2.num_parameters

GIB = 2**30


def cpu(memory_bytes: int = 16 * GIB, num_devices: int = 8) -> HardwareFacts:
    """A machine without accelerators."""
    return HardwareFacts(
        platform="cpu",
        device_kind="cpu",
        num_devices=num_devices,
        memory_bytes=memory_bytes,
        host_memory_bytes=memory_bytes,
    )


def gpu(memory_bytes: int, num_devices: int = 8) -> HardwareFacts:
    """A machine with some GPUs."""
    return HardwareFacts(
        platform="gpu",
        device_kind="H100",
        num_devices=num_devices,
        memory_bytes=memory_bytes,
        host_memory_bytes=64 * GIB,
    )
