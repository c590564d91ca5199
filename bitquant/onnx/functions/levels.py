"""Bits and levels in standard operators.

Levels are stored as uint8 ``level - lowest``, with the zero point ``-lowest``: {-1, +1} are {0, 2} around 1, {0, 1} are
themselves around 0. ``x > t`` is ``x >= nextafter(t)``, so one comparison serves both sets.
"""

TEXTS = {
    # uint8 (..., bytes) -> int8 (..., columns) of -1 and +1: the eight signs of each byte value, looked up
    "Signs": """<columns> (packed) => (signs) {
        zero = Constant <value_int: int = 0> ()
        one = Constant <value_int: int = 1> ()
        two = Constant <value_int: int = 2> ()
        values = Constant <value_int: int = 256> ()
        first = Constant <value_ints: ints = [0]> ()
        last = Constant <value_ints: ints = [-1]> ()
        powers = Constant <value_ints: ints = [1, 2, 4, 8, 16, 32, 64, 128]> ()
        end = Constant <value_int: int = @columns> ()
        ends = Unsqueeze (end, first)
        bytes = Range (zero, values, one)
        column = Unsqueeze (bytes, last)
        shifted = Div (column, powers)
        bits = Mod (shifted, two)
        doubled = Mul (bits, two)
        levels = Sub (doubled, one)
        table = Cast <to: int = 3> (levels)
        index = Cast <to: int = 6> (packed)
        octets = Gather <axis: int = 0> (table, index)
        lead = Shape <start: int = 0, end: int = -1> (packed)
        shape = Concat <axis: int = 0> (lead, last)
        row = Reshape (octets, shape)
        signs = Slice (row, first, ends, last)
    }""",
    # the place of the level 0
    "ZeroPoint": """<zero_point> () => (zero) {
        middle = Constant <value_int: int = @zero_point> ()
        zero = Cast <to: int = 2> (middle)
    }""",
    # float x -> uint8: 0, or zero_point + 1 where x >= threshold; a Where takes twice the time
    "BinaryLevels": """<zero_point> (x, threshold) => (levels) {
        middle = Constant <value_int: int = @zero_point> ()
        one = Constant <value_int: int = 1> ()
        above = Add (middle, one)
        high = Cast <to: int = 2> (above)
        taken = GreaterOrEqual (x, threshold)
        bits = Cast <to: int = 2> (taken)
        levels = Mul (bits, high)
    }""",
    # float x -> uint8: rint((x + shift) / step) + zero_point, clipped to 0 .. top
    "IntegerLevels": """<zero_point, top> (x, shift, step) => (levels) {
        middle = Constant <value_int: int = @zero_point> ()
        most = Constant <value_int: int = @top> ()
        least = Constant <value_float: float = 0.0> ()
        offset = Cast <to: int = 1> (middle)
        highest = Cast <to: int = 1> (most)
        shifted = Add (x, shift)
        units = Div (shifted, step)
        nearest = Round (units)
        raised = Add (nearest, offset)
        clipped = Clip (raised, least, highest)
        levels = Cast <to: int = 2> (clipped)
    }""",
    # uint8 levels -> the float values they stand for
    "Values": """(levels, zero) => (values) {
        raised = Cast <to: int = 1> (levels)
        offset = Cast <to: int = 1> (zero)
        values = Sub (raised, offset)
    }""",
    # sums of x -> fl(fl(sum * scale) + bias), rounded twice (contract 1). ONNX Runtime fuses a MatMulInteger with the
    # cast and a product by a product that is made while it runs: 1 * scale, with a 1 that it cannot fold. It would fuse
    # an Add too, into what some processors round once; a Sub stays
    "Scaled": """(x, sums, scale, bias) => (y) {
        one = Constant <value_int: int = 1> ()
        size = Size (x)
        least = Min (size, one)
        unit = Cast <to: int = 1> (least)
        factor = Mul (unit, scale)
        exact = Cast <to: int = 1> (sums)
        scaled = Mul (exact, factor)
        opposite = Neg (bias)
        y = Sub (scaled, opposite)
    }""",
    # embedding: the rows stay packed, a look-up unpacks those it needs
    "BinaryEmbedding": """<columns> (indices, packed, scale) => (y) {
        rows = Gather <axis: int = 0> (packed, indices)
        signs = bitquant.Signs <columns: int = @columns> (rows)
        scales = Gather <axis: int = 0> (scale, indices)
        last = Constant <value_ints: ints = [-1]> ()
        column = Unsqueeze (scales, last)
        values = Cast <to: int = 1> (signs)
        y = Mul (values, column)
    }""",
    # one 1-bit table below the other: a level is the sum of +-2^bit
    "IntegerEmbedding": """<columns, bits> (indices, packed, scale) => (y) {
        zero = Constant <value_int: int = 0> ()
        one = Constant <value_int: int = 1> ()
        two = Constant <value_float: float = 2.0> ()
        first = Constant <value_ints: ints = [0]> ()
        last = Constant <value_ints: ints = [-1]> ()
        count = Constant <value_int: int = @bits> ()
        counts = Unsqueeze (count, first)
        all = Shape <start: int = 0, end: int = 1> (packed)
        height = Div (all, counts)
        split = Concat <axis: int = 0> (counts, height, last)
        tables = Reshape (packed, split)
        rows = Gather <axis: int = 1> (tables, indices)
        signs = bitquant.Signs <columns: int = @columns> (rows)
        shape = Shape <start: int = 1> (signs)
        values = Cast <to: int = 1> (signs)
        flat = Concat <axis: int = 0> (counts, last)
        planes = Reshape (values, flat)
        places = Range (zero, count, one)
        exponents = Cast <to: int = 1> (places)
        powers = Pow (two, exponents)
        sums = MatMul (powers, planes)
        levels = Reshape <allowzero: int = 1> (sums, shape)
        scales = Gather <axis: int = 0> (scale, indices)
        column = Unsqueeze (scales, last)
        y = Mul (levels, column)
    }""",
}
