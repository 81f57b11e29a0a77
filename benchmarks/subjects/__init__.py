"""The libraries and programs that are compared, a module each.

Each module has `version()` and functions that take the settings, check a round trip and return the `Job` to time.
Jobs of one name handle the same bytes.
"""
