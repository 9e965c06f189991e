"""The plugin host and the built-in operator families, one file a family. Find an operator: `onnxeqx ops NAME`."""
