"""From a weights file's name to a checked state dict."""
