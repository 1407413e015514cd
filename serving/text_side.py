"""Everything that turns text into requests and back, once the model's folder is known."""

import time
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import msgspec
from msgspec import Struct

from configs.schema import EngineConfig
from scheduler.commands import Ready
from serving.chat_template import ChatTemplate
from serving.tokenizer import Tokenizer


class SamplingDefaults(Struct, frozen=True, kw_only=True):
    """What a request means that does not say; OpenAI's, or the model's own from ``generation_config.json``."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None


@dataclass(slots=True, frozen=True, kw_only=True)
class Limits:
    """Bounds that come from the model and the launch file."""

    vocab_size: int
    context_length: int
    max_input: int
    max_choices: int
    max_prompts: int


@dataclass(slots=True, frozen=True, kw_only=True)
class TextSide:
    """The model as text sees it."""

    tokenizer: Tokenizer
    template: ChatTemplate | None
    defaults: SamplingDefaults
    limits: Limits
    ready: Ready
    fingerprint: str
    """Changes with the model and the launch file, not with the machine."""


def load_text_side(ready: Ready, config: EngineConfig) -> TextSide:
    """Read the model's folder. Blocks; raises ``OSError`` or ``msgspec.DecodeError`` where it is broken."""
    folder = Path(ready.folder)
    tokenizer = Tokenizer(folder)
    source = _template_source(folder, tokenizer)
    template = None
    if source is not None:
        template = ChatTemplate(
            source,
            special_tokens=tokenizer.special_tokens,
            bos_token=tokenizer.bos_token,
            eos_token=tokenizer.eos_token,
            now=time.strftime,
        )
    serving = config.serving
    limits = Limits(
        vocab_size=ready.vocab_size,
        context_length=ready.context_length,
        max_input=ready.max_req_input_len,
        max_choices=serving.max_choices,
        max_prompts=serving.max_prompts_per_request,
    )
    settings = (config.model, config.scheduler, config.cache, config.parallel)
    digest = sha256(msgspec.json.encode([settings, ready.architecture, ready.served_name])).hexdigest()
    return TextSide(
        tokenizer=tokenizer,
        template=template,
        defaults=_read_defaults(folder) if serving.sampling_defaults == "model" else SamplingDefaults(),
        limits=limits,
        ready=ready,
        fingerprint=f"fp_{digest[:12]}",
    )


def _template_source(folder: Path, tokenizer: Tokenizer) -> str | None:
    path = folder / "chat_template.jinja"
    if path.exists():
        return path.read_text()
    inline = tokenizer.config.chat_template
    if isinstance(inline, list):
        return next((entry["template"] for entry in inline if entry.get("name") == "default"), None)
    return inline


def _read_defaults(folder: Path) -> SamplingDefaults:
    path = folder / "generation_config.json"
    return msgspec.json.decode(path.read_bytes(), type=SamplingDefaults) if path.exists() else SamplingDefaults()
