"""Writes the token ids that the tokenizers built from GGUF metadata are held to.

Run by hand, in an environment of its own with torch, transformers and gguf:

    python tests/golden/make_tokens.py path/to/SmolLM2-135M-Instruct.Q4_1.gguf path/to/gemma-3-270m-q4_k_m.gguf

transformers (5.19) leaves out what ``tokenizer.ggml.pre: smollm`` asks for, that digits are split one by one before
anything else; it is put back here.
"""

import json
import sys
from pathlib import Path

from tokenizers import pre_tokenizers
from transformers import AutoTokenizer

HERE = Path(__file__).parent
TEXTS = (
    "",
    " ",
    "\n\n  \n",
    "Hello, world!",
    "  leading and   inner   spaces  ",
    "I'll say it's what they've done; we'd DON'T",
    "0 12 345 6789 3.14159 1,000,000 2026-11-21 0x1F a1b2c3 ٣٤ Ⅷ ½",
    "naïve café Ångström",
    "e\u0301 and \u00e9 differ",
    "日本語のテキスト、한국어, 中文。",
    "Привет мир Καλημέρα שלום مرحبا हिन्दी ไทย",
    "🎉👩‍👩‍👧‍👦🇫🇷 emoji",
    "\u200b\ufeff\u00a0odd\u2003spaces\u3000",
    "def f(x: int) -> int:\n\treturn x ** 2  # squared\n\n\nprint(f(12))\r\n",
    '{"key": [1, 2.5, null], "nested": {"a": "\\n"}}',
    "<|im_start|>user\nHi<|im_end|>\n",
    "<|endoftext|><repo_name>x<file_sep>y<empty_output>",
    "<|im_start|><|im_start|> <|im_end|>almost <|im_end",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "\x00\x01\x7f control",
    "ﬁligature ＦＵＬＬ ｗｉｄｔｈ",
)
CHATS = (
    [{"role": "user", "content": "Name the capital of France."}],
    [{"role": "system", "content": "Answer in one word."}, {"role": "user", "content": "2 + 2 = ?"}],
    [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello! How can I help?"},
        {"role": "user", "content": "Tell me a joke.\n"},
    ],
)


def make_gemma3(gguf: Path) -> None:
    """Write ``tokens/gemma3-270m.json``."""
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    texts = [{"text": text, "ids": tokenizer(text).input_ids} for text in TEXTS]
    golden = json.dumps({"texts": texts}, ensure_ascii=True, indent=1)
    (HERE / "tokens" / "gemma3-270m.json").write_text(golden + "\n")


def make_smollm2(gguf: Path) -> None:
    """Write ``tokens/smollm2.json``."""
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    digits = pre_tokenizers.Digits(individual_digits=True)
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    texts = [{"text": text, "ids": tokenizer(text).input_ids} for text in TEXTS]
    chats = []
    for messages in CHATS:
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        chats.append({"messages": messages, "text": text, "ids": tokenizer(text).input_ids})
    golden = json.dumps({"texts": texts, "chats": chats}, ensure_ascii=True, indent=1)
    (HERE / "tokens" / "smollm2.json").write_text(golden + "\n")


if __name__ == "__main__":
    make_smollm2(Path(sys.argv[1]))
    make_gemma3(Path(sys.argv[2]))
