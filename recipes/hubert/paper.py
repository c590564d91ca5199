"""What the paper (arXiv 2311.02772) says: its Table 1, for comparison only, and which layers it binarizes."""

from bitquant import QuantConfig

EVERY_LAYER = QuantConfig.preset("bit-plus", depthwise="binary")  # it leaves none in float

COLUMNS = ("storage_mb", "flop_g", "bop_float_gi", "bop_quantized_gi", "time_1e4_s")

# name of the row -> storage (MB), FLOP (G), BOP_NonQ (Gi), BOP_BQ (Gi), estimated time (1e-4 s)
TABLE1 = {
    "Vanilla": (184.42, 110.54, 1228.64, None, 38.46),
    "Conformer-S": (131.87, 22.10, 329.39, None, 10.31),
    "Squeezeformer-XS": (132.04, 18.31, 272.88, None, 8.54),
    "Sparseformer-DN-S": (60.81, 26.05, 388.18, None, 12.15),
    "Sparseformer-SW-S": (117.18, 40.09, 597.43, None, 18.70),
    "BQ-Vanilla": (25.23, 11.82, 172.83, 63.62, 5.53),
    "BQ-Conformer-S": (12.88, 7.23, 103.44, 15.94, 3.27),
    "BQ-Squeezeformer-XS": (13.05, 7.20, 104.05, 11.86, 3.28),
    "BQ-Sparseformer-DN-S": (12.10, 7.35, 107.91, 10.70, 3.40),
    "BQ-Sparseformer-SW-S": (19.71, 8.85, 130.38, 19.49, 4.12),
}
