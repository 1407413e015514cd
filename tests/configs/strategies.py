"""Values that the launch schema takes, drawn from its own field types."""

from hypothesis import strategies as st
from msgspec.inspect import (
    BoolType,
    FloatType,
    IntType,
    LiteralType,
    NoneType,
    StrType,
    Type,
    UnionType,
    VarTupleType,
    type_info,
)

from configs.load import FIELDS

LETTERS = st.characters(min_codepoint=32, max_codepoint=0x2FF, exclude_characters="\x7f\x85")


def values_of(kind: Type) -> st.SearchStrategy[object]:
    """Any value that a field of this type takes, as YAML would give it."""
    match kind:
        case IntType(ge=low, le=high):
            return st.integers(low, high)
        case FloatType(gt=above, ge=low, le=high):
            return st.floats(above if low is None else low, high, exclude_min=low is None)
        case StrType(min_length=shortest, max_length=longest):
            return st.text(LETTERS, min_size=shortest or 0, max_size=min(longest or 20, 20))
        case BoolType():
            return st.booleans()
        case LiteralType(values=values):
            return st.sampled_from(values)
        case NoneType():
            return st.none()
        case VarTupleType(item_type=item, max_length=longest):
            return st.lists(values_of(item), max_size=min(longest or 3, 3))
        case UnionType(types=types):
            return st.one_of([values_of(part) for part in types])
    raise AssertionError(kind)


@st.composite
def settings(draw: st.DrawFn, keys: tuple[str, ...] = tuple(FIELDS)) -> dict[str, object]:
    """Values for some of ``keys``."""
    chosen = draw(st.sets(st.sampled_from(keys)))
    return {key: draw(values_of(type_info(FIELDS[key].type))) for key in sorted(chosen)}
