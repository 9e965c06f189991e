"""(being written)"""

from .hookspecs import hookimpl


@hookimpl
def onnxeqx_register_ops(registry):
    registry.add_module(__name__)
