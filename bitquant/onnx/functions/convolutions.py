"""Binary convolutions: windows gathered from levels with the channels last, then one integer product a group.

A row of the weight is ordered ``tap * channels_per_group + channel``, as the windows are. Borders, and places whose
input vector is exactly zero, hold the level 0 (contract 5). With one channel a group the products are too small, so a
float convolution of the levels is taken, exact too; a ``Round`` keeps the runtime from folding the scale into its
weights.
"""

GEOMETRY = "group, kernel_shape, strides, pads, dilations"

TEXTS = {
    # levels (B, C, *space), 0 where all channels of x are zero
    "Present": """(x, levels, zero) => (present) {
        channels = Constant <value_ints: ints = [1]> ()
        nothing = Constant <value_float: float = 0.0> ()
        magnitude = ReduceL1 <keepdims: int = 1> (x, channels)
        some = Greater (magnitude, nothing)
        present = Where (some, levels, zero)
    }""",
    # int64 (outputs, kernel): the places that each output reads along a padded dimension
    "Places": """(length, kernel, stride, dilation) => (places, outputs) {
        zero = Constant <value_int: int = 0> ()
        one = Constant <value_int: int = 1> ()
        axis = Constant <value_ints: ints = [1]> ()
        steps = Sub (kernel, one)
        reach = Mul (steps, dilation)
        room = Sub (length, reach)
        last = Sub (room, one)
        strides = Div (last, stride)
        outputs = Add (strides, one)
        output = Range (zero, outputs, one)
        start = Mul (output, stride)
        tap = Range (zero, kernel, one)
        offset = Mul (tap, dilation)
        column = Unsqueeze (start, axis)
        places = Add (column, offset)
    }""",
    # pads of the space alone -> those of (B, G, *space, C / G)
    "Border": """<pads> () => (border) {
        outer = Constant <value_ints: ints = [0, 0]> ()
        inner = Constant <value_ints: ints = [0]> ()
        sides = Constant <value_ints: ints = @pads> ()
        before, after = Split <num_outputs: int = 2> (sides)
        border = Concat <axis: int = 0> (outer, before, inner, outer, after, inner)
    }""",
    # (B, C, *space) -> (B, G, C / G, *space)
    "Grouped": """<group> (levels) => (grouped) {
        axis = Constant <value_ints: ints = [0]> ()
        number = Constant <value_int: int = @group> ()
        groups = Unsqueeze (number, axis)
        batch = Shape <start: int = 0, end: int = 1> (levels)
        channels = Shape <start: int = 1, end: int = 2> (levels)
        space = Shape <start: int = 2> (levels)
        each = Div (channels, groups)
        shape = Concat <axis: int = 0> (batch, groups, each, space)
        grouped = Reshape (levels, shape)
    }""",
    # (B, G, P, C / G) read at index (outputs, taps), times signs (N, taps * C / G) -> int32 (B, N, *space)
    "Windows": """<group> (places, index, zero, signs, space) => (sums) {
        axis = Constant <value_ints: ints = [0]> ()
        rest = Constant <value_ints: ints = [-1]> ()
        flat = Constant <value_ints: ints = [0, 0, 0, -1]> ()
        number = Constant <value_int: int = @group> ()
        groups = Unsqueeze (number, axis)
        gathered = Gather <axis: int = 2> (places, index)
        windows = Reshape (gathered, flat)
        columns = Shape <start: int = 1> (signs)
        by_group = Concat <axis: int = 0> (groups, rest, columns)
        rows = Reshape (signs, by_group)
        weight = Transpose <perm: ints = [0, 2, 1]> (rows)
        products = MatMulInteger (windows, weight, zero)
        channels_first = Transpose <perm: ints = [0, 1, 3, 2]> (products)
        batch = Shape <start: int = 0, end: int = 1> (places)
        channels = Shape <start: int = 0, end: int = 1> (signs)
        shape = Concat <axis: int = 0> (batch, channels, space)
        sums = Reshape (channels_first, shape)
    }""",
    # levels (B, C, *space), signs (N, taps * C / G) -> int32 or float sums (B, N, *space)
    "Conv1d": f"""<{GEOMETRY}> (levels, zero, signs) => (sums) {{
        origin = Constant <value_ints: ints = [0]> ()
        border = bitquant.Border <pads: ints = @pads> ()
        kernels = Constant <value_ints: ints = @kernel_shape> ()
        steps = Constant <value_ints: ints = @strides> ()
        spreads = Constant <value_ints: ints = @dilations> ()
        kernel = Squeeze (kernels)
        stride = Squeeze (steps)
        dilation = Squeeze (spreads)
        grouped = bitquant.Grouped <group: int = @group> (levels)
        channels_last = Transpose <perm: ints = [0, 1, 3, 2]> (grouped)
        padded = Pad (channels_last, border, zero)
        lengths = Shape <start: int = 2, end: int = 3> (padded)
        length = Squeeze (lengths)
        index, outputs = bitquant.Places (length, kernel, stride, dilation)
        space = Unsqueeze (outputs, origin)
        sums = bitquant.Windows <group: int = @group> (padded, index, zero, signs, space)
    }}""",
    "Conv2d": f"""<{GEOMETRY}> (levels, zero, signs) => (sums) {{
        origin = Constant <value_ints: ints = [0]> ()
        rest = Constant <value_ints: ints = [-1]> ()
        odd = Constant <value_ints: ints = [1, 3]> ()
        even = Constant <value_ints: ints = [0, 2]> ()
        down = Constant <value_int: int = 0> ()
        right = Constant <value_int: int = 1> ()
        border = bitquant.Border <pads: ints = @pads> ()
        kernels = Constant <value_ints: ints = @kernel_shape> ()
        steps = Constant <value_ints: ints = @strides> ()
        spreads = Constant <value_ints: ints = @dilations> ()
        kernel_down = Gather (kernels, down)
        kernel_right = Gather (kernels, right)
        stride_down = Gather (steps, down)
        stride_right = Gather (steps, right)
        dilation_down = Gather (spreads, down)
        dilation_right = Gather (spreads, right)
        grouped = bitquant.Grouped <group: int = @group> (levels)
        channels_last = Transpose <perm: ints = [0, 1, 3, 4, 2]> (grouped)
        padded = Pad (channels_last, border, zero)
        lead = Shape <start: int = 0, end: int = 2> (padded)
        channels = Shape <start: int = 4> (padded)
        flat = Concat <axis: int = 0> (lead, rest, channels)
        places = Reshape (padded, flat)
        heights = Shape <start: int = 2, end: int = 3> (padded)
        widths = Shape <start: int = 3, end: int = 4> (padded)
        height = Squeeze (heights)
        width = Squeeze (widths)
        rows, outputs_down = bitquant.Places (height, kernel_down, stride_down, dilation_down)
        columns, outputs_right = bitquant.Places (width, kernel_right, stride_right, dilation_right)
        row_starts = Mul (rows, width)
        by_row = Unsqueeze (row_starts, odd)
        by_column = Unsqueeze (columns, even)
        grid = Add (by_row, by_column)
        count = Mul (kernel_down, kernel_right)
        taps = Unsqueeze (count, origin)
        pairs = Concat <axis: int = 0> (rest, taps)
        index = Reshape (grid, pairs)
        space_down = Unsqueeze (outputs_down, origin)
        space_right = Unsqueeze (outputs_right, origin)
        space = Concat <axis: int = 0> (space_down, space_right)
        sums = bitquant.Windows <group: int = @group> (places, index, zero, signs, space)
    }}""",
    "DepthwiseConv": f"""<{GEOMETRY}> (levels, zero, signs) => (sums) {{
        each = Constant <value_ints: ints = [-1, 1]> ()
        kernel = Constant <value_ints: ints = @kernel_shape> ()
        values = bitquant.Values (levels, zero)
        shape = Concat <axis: int = 0> (each, kernel)
        taps = Reshape (signs, shape)
        weight = Cast <to: int = 1> (taps)
        product = Conv <group: int = @group, kernel_shape: ints = @kernel_shape, strides: ints = @strides,
            pads: ints = @pads, dilations: ints = @dilations> (values, weight)
        sums = Round (product)
    }}""",
}
