"""Products of two activations: float products of levels, exact below 2^24, times one scale.

They stand around a float softmax: scores with a float bias, and attention at 2, 4 and 8 bits.
"""

_OPERANDS = {
    "Binary": (("threshold",), ("zero_point",), "BinaryLevels"),
    "Integer": (("shift", "step"), ("zero_point", "top"), "IntegerLevels"),
}


def _product(left: str, right: str, operator: str, more: str) -> str:
    inputs, settings, lines = [], [], []
    for name, kind in (("a", left), ("b", right)):
        vectors, numbers, levels = _OPERANDS[kind]
        inputs += [name, *(f"{name}_{vector}" for vector in vectors)]
        settings += [f"{name}_{number}" for number in numbers]
        passed = ", ".join(f"{number}: int = @{name}_{number}" for number in numbers)
        lines += [
            f"{name}_zero = bitquant.ZeroPoint <zero_point: int = @{name}_zero_point> ()",
            f"{name}_levels = bitquant.{levels} <{passed}> ({', '.join(inputs[-1 - len(vectors) :])})",
            f"{name}_values = bitquant.Values ({name}_levels, {name}_zero)",
        ]
    return f"""<{", ".join([*settings, *more])}> ({", ".join(inputs)}, scale) => (y) {{
        {chr(10).join(lines)}
        sums = {operator} (a_values, b_values)
        exact = Round (sums)
        y = Mul (exact, scale)
    }}"""


TEXTS = {
    **{
        f"{left}{right if left != right else ''}{name}": _product(left, right, operator, more)
        for left in _OPERANDS
        for right in _OPERANDS
        for name, operator, more in (
            ("MatMul", "MatMul", ()),
            ("Einsum", "Einsum <equation: string = @equation>", ("equation",)),
        )
    },
    # probabilities p: 1 where p >= share * best of the row, as the row-max rule takes keys; the mean of sign(v)
    "RowMaxMatMul": """(p, v, share, scale) => (y) {
        last = Constant <value_ints: ints = [-1]> ()
        nothing = Constant <value_float: float = 0.0> ()
        best = ReduceMax <keepdims: int = 1> (p, last)
        least = Mul (best, share)
        near = GreaterOrEqual (p, least)
        some = Greater (best, nothing)
        both = And (near, some)
        taken = Cast <to: int = 2> (both)
        y = bitquant.MeanTaken (taken, v, scale)
    }""",
}
