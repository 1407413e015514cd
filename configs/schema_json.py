"""The launch schema as JSON Schema, for editors. A test keeps ``configs/schema.json`` in step with it."""

import msgspec

from configs.schema import EngineConfig


def schema_json() -> str:
    """The schema's text, ending with a line break."""
    body = msgspec.json.schema(EngineConfig)
    document = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "A Radjax launch file"} | body
    return msgspec.json.format(msgspec.json.encode(document), indent=2).decode() + "\n"
