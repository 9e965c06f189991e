"""Settings of all tests."""

import os


def pytest_configure(config) -> None:
    # Most of the time goes into compiling small programs that run once. The real models (`-m zoo`) and `onnxeqx conformance`
    # run as users run them.
    if config.option.markexpr != "zoo":
        os.environ["XLA_FLAGS"] = f"--xla_backend_optimization_level=0 {os.environ.get('XLA_FLAGS', '')}".strip()
