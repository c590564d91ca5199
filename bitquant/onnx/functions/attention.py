"""Binary attention (contract 4) in standard operators.

All in integers. Only differences of scores within a row matter, and a key's bits of 0 and 1 give half of them with one
operator less. The taken keys multiply the signs of the values; for a mean, a column of ones beside the values counts
them. A mask puts scores far below every other.
"""

TEXTS = {
    # (B, H, Tq, d), (B, H, Tk, d) -> int32 (B, H, Tq, Tk): a product of -1, +1 and 0, 1, which within a row differs as
    # half the integer score does; at most d, at least -d
    "Scores": """(q, k) => (scores) {
        nothing = Constant <value_float: float = 0.0> ()
        zero = Constant <value: tensor = uint8 {1}> ()
        queries = bitquant.BinaryLevels <zero_point: int = 1> (q, nothing)
        key_bits = GreaterOrEqual (k, nothing)
        rows = Cast <to: int = 3> (key_bits)
        keys = Transpose <perm: ints = [0, 1, 3, 2]> (rows)
        scores = MatMulInteger (queries, keys, zero)
    }""",
    # int8 0 and 2, around 1
    "ValueLevels": """(v) => (levels) {
        nothing = Constant <value_float: float = 0.0> ()
        taken = GreaterOrEqual (v, nothing)
        bits = Cast <to: int = 3> (taken)
        levels = Add (bits, bits)
    }""",
    # uint8 1 where score >= best - margin / 2; scores at the floor or below belong to removed keys
    "NearBest": """(scores, margin) => (taken) {
        last = Constant <value_ints: ints = [-1]> ()
        two = Constant <value_int: int = 2> ()
        widest = Constant <value_int: int = 16777216> ()
        floor = Constant <value: tensor = int32 {-268435456}> ()
        best = ReduceMax <keepdims: int = 1> (scores, last)
        bounded = Min (margin, widest)
        halved = Div (bounded, two)
        distance = Cast <to: int = 6> (halved)
        reach = Sub (best, distance)
        threshold = Max (reach, floor)
        near = GreaterOrEqual (scores, threshold)
        taken = Cast <to: int = 2> (near)
    }""",
    # the mean of sign(v) over the taken keys, times scale; 0 where there are none
    "MeanTaken": """(taken, v, scale) => (y) {
        unit = Constant <value_float: float = 1.0> ()
        first = Constant <value_ints: ints = [0]> ()
        last = Constant <value_ints: ints = [-1]> ()
        end = Constant <value_ints: ints = [9223372036854775807]> ()
        second = Constant <value_ints: ints = [1]> ()
        none = Constant <value: tensor = uint8 {0}> ()
        zero = Constant <value: tensor = int8 {1}> ()
        two = Constant <value: tensor = int8 {2}> ()
        levels = bitquant.ValueLevels (v)
        column = Slice (levels, first, second, last)
        ones = BitwiseOr (column, two)
        counted = Concat <axis: int = -1> (levels, ones)
        sums = MatMulInteger (taken, counted, none, zero)
        totals = Cast <to: int = 1> (sums)
        total = Slice (totals, first, last, last)
        number = Slice (totals, last, end, last)
        count = Max (number, unit)
        mean = Div (total, count)
        y = Mul (mean, scale)
    }""",
    # table [d + 1] -> float (2 d + 2, 2 d + 2): table[best - score] at (best, score), where negative ones count from
    # the end; 0 for the score of removed keys, -d - 1
    "TableByScores": """(table) => (weights) {
        none = Constant <value_int: int = 0> ()
        unit = Constant <value_int: int = 1> ()
        down = Constant <value_ints: ints = [1]> ()
        across = Constant <value_ints: ints = [0]> ()
        nothing = Constant <value_floats: floats = [0.0]> ()
        length = Size (table)
        side = Add (length, length)
        removed = Neg (length)
        place = Range (none, side, unit)
        from_end = Sub (place, side)
        positive = Less (place, length)
        score = Where (positive, place, from_end)
        best = Unsqueeze (score, down)
        scores = Unsqueeze (score, across)
        below = Sub (best, scores)
        ahead = GreaterOrEqual (below, none)
        near = Less (below, length)
        kept = Greater (scores, removed)
        inside = And (ahead, near)
        known = And (inside, kept)
        index = Where (known, below, length)
        values = Cast <to: int = 1> (table)
        extended = Concat <axis: int = 0> (values, nothing)
        weights = Gather <axis: int = 0> (extended, index)
    }""",
    # float (..., T) of integers up to 2^12 -> their int64 sum (..., 1): in floats, twice as fast, 4096 at a time, as
    # these are exact up to 2^24
    "ExactSum": """(weight) => (whole) {
        none = Constant <value_int: int = 0> ()
        unit = Constant <value_int: int = 1> ()
        most = Constant <value_int: int = 4096> ()
        down = Constant <value_ints: ints = [1]> ()
        across = Constant <value_ints: ints = [0]> ()
        last = Constant <value_ints: ints = [-1]> ()
        number = Shape <start: int = -1> (weight)
        keys = Squeeze (number)
        key = Range (none, keys, unit)
        part_of_key = Div (key, most)
        before = Sub (keys, unit)
        latest = Div (before, most)
        parts = Add (latest, unit)
        part = Range (none, parts, unit)
        rows = Unsqueeze (part_of_key, down)
        columns = Unsqueeze (part, across)
        belongs = Equal (rows, columns)
        members = Cast <to: int = 1> (belongs)
        sums = MatMul (weight, members)
        exact = Cast <to: int = 7> (sums)
        whole = ReduceSum <keepdims: int = 1> (exact, last)
    }""",
    # uint8 1 where table[best - score] * 2^24 > ratio * (its sum over the keys), in integers
    "LargestShares": """(scores, table, ratio) => (taken) {
        last = Constant <value_ints: ints = [-1]> ()
        bits = Constant <value_int: int = 16777216> ()
        weights = bitquant.TableByScores (table)
        best = ReduceMax <keepdims: int = 0> (scores, last)
        rows = Gather <axis: int = 0> (weights, best)
        weight = GatherElements <axis: int = -1> (rows, scores)
        whole = bitquant.ExactSum (weight)
        part = Min (ratio, bits)
        product = Mul (whole, part)
        limit = Div (product, bits)
        threshold = Cast <to: int = 1> (limit)
        larger = Greater (weight, threshold)
        taken = Cast <to: int = 2> (larger)
    }""",
    "SumTaken": """(taken, v, scale) => (y) {
        none = Constant <value: tensor = uint8 {0}> ()
        zero = Constant <value: tensor = int8 {1}> ()
        levels = bitquant.ValueLevels (v)
        sums = MatMulInteger (taken, levels, none, zero)
        total = Cast <to: int = 1> (sums)
        y = Mul (total, scale)
    }""",
    "BinaryAttention": """(q, k, v, margin, scale) => (y) {
        scores = bitquant.Scores (q, k)
        taken = bitquant.NearBest (scores, margin)
        y = bitquant.MeanTaken (taken, v, scale)
    }""",
    "MaskedBinaryAttention": """(q, k, v, keep, margin, scale) => (y) {
        removed = Constant <value: tensor = int32 {-1073741824}> ()
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
        length = Size (table)
        lowest = Neg (length)
        removed = Cast <to: int = 6> (lowest)
        all = bitquant.Scores (q, k)
        scores = Where (keep, all, removed)
        taken = bitquant.LargestShares (scores, table, ratio)
        y = bitquant.SumTaken (taken, v, scale)
    }""",
}
