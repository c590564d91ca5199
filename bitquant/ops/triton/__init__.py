"""GPU kernels in Triton, behind the torch operators and, with packed activations between them, ``fused``.

Importing this package imports neither triton nor a driver. ``device`` says what runs here and why, ``config`` how it is
launched, ``operators`` serves the functions of ``naive``; every kernel has a file of its own. All arithmetic is on
integers but for one rounding of the scale and one of the bias (contract 1): kernels are compiled without fused
multiply-add.
"""
