"""The pickle of a file that torch saved: it may have the instructions that make tensors by name, and no others."""

import pickletools

# What torch writes for tensors by name.
GLOBALS = {
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    *(f"torch {dtype}Storage" for dtype in ("Float", "Half", "Double", "BFloat16")),
}
TUPLES = {"EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"}
PUT, GET = {"BINPUT", "LONG_BINPUT"}, {"BINGET", "LONG_BINGET"}
INSTRUCTIONS = frozenset(TUPLES | PUT | GET | {
    "PROTO", "GLOBAL", "BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "NEWTRUE", "NEWFALSE", "EMPTY_DICT",
    "MARK", "BINPERSID", "REDUCE", "SETITEM", "SETITEMS", "BUILD", "STOP",
})  # fmt: skip
OF_FACTS = {"EMPTY_LIST", "APPEND", "APPENDS", "NONE", "BINFLOAT"}  # lists, None and fractions


def check(program: bytes, instructions: frozenset[str]) -> None:
    """ValueError for a pickle with an instruction that torch does not write for such a dictionary of tensors."""
    memo: dict[object, str] = {}  # the instruction that made the object of each slot
    maker = ""  # the last instruction that left something on the stack
    for operation, argument, _ in pickletools.genops(program):
        name = operation.name
        if name not in instructions:
            raise ValueError(f"its pickle has the instruction {name}")
        if name == "GLOBAL" and argument not in GLOBALS:
            raise ValueError(f"its pickle names {argument}")
        # Nested tuples may be as deep as the file is long, or take for ever to hash. Torch writes none.
        if name in TUPLES - {"EMPTY_TUPLE"} and maker in TUPLES:
            raise ValueError("its pickle has a tuple in a tuple")
        if name in GET and memo.get(argument) in TUPLES:
            raise ValueError("its pickle uses a tuple twice")
        if name in PUT:
            memo[argument] = maker
        else:
            maker = name
