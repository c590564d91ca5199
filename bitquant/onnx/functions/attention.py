"""Binary attention (contract 4) in standard operators.

Scores are a float product of -1 and +1, exact and as fast as any here. The taken keys multiply the signs of the values
as integers; for a mean, a column of ones beside the values counts them. A mask puts scores far below every other.
"""

TEXTS = {
    # (B, H, Tq, d), (B, H, Tk, d) -> the integer scores, float (B, H, Tq, Tk)
    "Scores": """(q, k) => (scores) {
        zero = Constant <value_float: float = 0.0> ()
        plus = Constant <value_float: float = 1.0> ()
        minus = Constant <value_float: float = -1.0> ()
        query_bits = GreaterOrEqual (q, zero)
        key_bits = GreaterOrEqual (k, zero)
        query_signs = Where (query_bits, plus, minus)
        key_signs = Where (key_bits, plus, minus)
        keys = Transpose <perm: ints = [0, 1, 3, 2]> (key_signs)
        scores = MatMul (query_signs, keys)
    }""",
    # float -1 and +1
    "ValueSigns": """(v) => (signs) {
        zero = Constant <value_float: float = 0.0> ()
        up = Constant <value_float: float = 1.0> ()
        down = Constant <value_float: float = -1.0> ()
        bits = GreaterOrEqual (v, zero)
        signs = Where (bits, up, down)
    }""",
    # uint8 1 where score >= best - margin; scores at the floor or below belong to removed keys
    "NearBest": """(scores, margin) => (taken) {
        last = Constant <value_ints: ints = [-1]> ()
        widest = Constant <value_int: int = 16777216> ()
        floor = Constant <value_float: float = -268435456.0> ()
        best = ReduceMax <keepdims: int = 1> (scores, last)
        exact = Min (margin, widest)
        distance = Cast <to: int = 1> (exact)
        reach = Sub (best, distance)
        threshold = Max (reach, floor)
        near = GreaterOrEqual (scores, threshold)
        taken = Cast <to: int = 2> (near)
    }""",
    # the mean of sign(v) over the taken keys, times scale; 0 where there are none
    "MeanTaken": """(taken, v, scale) => (y) {
        unit = Constant <value_float: float = 1.0> ()
        second = Constant <value_ints: ints = [1]> ()
        first = Constant <value_ints: ints = [0]> ()
        last = Constant <value_ints: ints = [-1]> ()
        end = Constant <value_ints: ints = [9223372036854775807]> ()
        signs = bitquant.ValueSigns (v)
        column = Slice (signs, first, second, last)
        ones = Abs (column)
        beside = Concat <axis: int = -1> (signs, ones)
        counted = Cast <to: int = 3> (beside)
        sums = MatMulInteger (taken, counted)
        totals = Cast <to: int = 1> (sums)
        total = Slice (totals, first, last, last)
        number = Slice (totals, last, end, last)
        count = Max (number, unit)
        mean = Div (total, count)
        y = Mul (mean, scale)
    }""",
    # uint8 1 where table[(best - score) / 2] * 2^24 > ratio * (its sum over the keys), in integers; removed keys, with
    # a score of -3 d - 2, read the zeros behind the table
    "LargestShares": """(scores, table, ratio) => (taken) {
        last = Constant <value_ints: ints = [-1]> ()
        half = Constant <value_float: float = 0.5> ()
        none = Constant <value: tensor = int32 {0}> ()
        unit = Constant <value_int: int = 1> ()
        bits = Constant <value_int: int = 16777216> ()
        entries = Cast <to: int = 6> (table)
        zeros = Mul (entries, none)
        extended = Concat <axis: int = 0> (entries, zeros)
        length = Size (table)
        dimension = Sub (length, unit)
        lowest = Neg (dimension)
        least = Cast <to: int = 1> (lowest)
        highest = ReduceMax <keepdims: int = 1> (scores, last)
        best = Max (highest, least)
        below = Sub (best, scores)
        steps = Mul (below, half)
        index = Cast <to: int = 6> (steps)
        any_row = Cast <to: int = 6> (best)
        blank = Mul (any_row, none)
        rows = Add (blank, extended)
        weight = GatherElements <axis: int = -1> (rows, index)
        parts = ReduceSum <keepdims: int = 1> (weight, last)
        whole = Cast <to: int = 7> (parts)
        part = Min (ratio, bits)
        product = Mul (whole, part)
        limit = Div (product, bits)
        threshold = Cast <to: int = 6> (limit)
        larger = Greater (weight, threshold)
        taken = Cast <to: int = 2> (larger)
    }""",
    "SumTaken": """(taken, v, scale) => (y) {
        signs = bitquant.ValueSigns (v)
        values = Cast <to: int = 3> (signs)
        sums = MatMulInteger (taken, values)
        total = Cast <to: int = 1> (sums)
        y = Mul (total, scale)
    }""",
    "BinaryAttention": """(q, k, v, margin, scale) => (y) {
        scores = bitquant.Scores (q, k)
        taken = bitquant.NearBest (scores, margin)
        y = bitquant.MeanTaken (taken, v, scale)
    }""",
    "MaskedBinaryAttention": """(q, k, v, keep, margin, scale) => (y) {
        removed = Constant <value_float: float = -1073741824.0> ()
        all = bitquant.Scores (q, k)
        scores = Where (keep, all, removed)
        taken = bitquant.NearBest (scores, margin)
        y = bitquant.MeanTaken (taken, v, scale)
    }""",
    "TableAttention": """(q, k, v, table, ratio, scale) => (y) {
        scores = bitquant.Scores (q, k)
        taken = bitquant.LargestShares (scores, table, ratio)
        y = bitquant.SumTaken (taken, v, scale)
    }""",
    "MaskedTableAttention": """(q, k, v, keep, table, ratio, scale) => (y) {
        factor = Constant <value_int: int = -3> ()
        offset = Constant <value_int: int = 1> ()
        length = Size (table)
        scaled = Mul (length, factor)
        lowest = Add (scaled, offset)  # -3 (d + 1) + 1
        removed = Cast <to: int = 1> (lowest)
        all = bitquant.Scores (q, k)
        scores = Where (keep, all, removed)
        taken = bitquant.LargestShares (scores, table, ratio)
        y = bitquant.SumTaken (taken, v, scale)
    }""",
}
