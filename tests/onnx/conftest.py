"""Every test here exports, and runs the file in ONNX Runtime."""

import pytest

pytest.importorskip("onnxruntime", reason="exported files are checked in ONNX Runtime: pip install onnxruntime")
pytest.importorskip("onnxscript", reason="torch exports to ONNX with onnxscript: pip install onnxscript")
