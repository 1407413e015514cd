"""Field types of the launch schema in words, for error messages."""

from msgspec.inspect import BoolType, FloatType, IntType, LiteralType, NoneType, StrType, Type, UnionType, VarTupleType


def allowed(kind: Type) -> str:
    """What a field of this type takes."""
    match kind:
        case IntType(ge=low, le=high):
            return f"a whole number{_range(low, None, high)}"
        case FloatType(gt=above, ge=low, le=high):
            return f"a number{_range(low, above, high)}"
        case StrType(max_length=longest):
            return f"text of at most {longest} characters" if longest else "text"
        case BoolType():
            return "true or false"
        case LiteralType(values=values):
            return " or ".join(str(value) for value in values)
        case NoneType():
            return "null"
        case VarTupleType(item_type=item, max_length=longest):
            return f"a list of at most {longest}, each {allowed(item)}"
        case UnionType(types=types):
            return ", or ".join(allowed(part) for part in types)
        case _:
            raise AssertionError(f"the launch schema has a type without words: {kind}")


def _range(low: float | None, above: float | None, high: float | None) -> str:
    bounds = {"from": low, "above": above, "to": high}
    return "".join(f" {word} {bound}" for word, bound in bounds.items() if bound is not None)
