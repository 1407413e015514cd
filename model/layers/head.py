"""The weights that make logits of hidden states."""

from flax import nnx

from model.layers.parameter import weight
from model.spec import ModelSpec


def head(embedding: nnx.Param | None, spec: ModelSpec, vocab: int, dtype: str) -> nnx.Param:
    """``[vocab, hidden]``: the embedding where the two are tied, unless another stage has that."""
    if spec.tie_embeddings and embedding is not None:
        return embedding
    return weight((vocab, spec.hidden_size), ("vocab", "hidden"), dtype)
