"""The audit log: writing it, verifying it, anchoring it, reporting on it (docs/audit.md).

`tapeseal.audit` is what the library calls to have an operation recorded; here is where the entries go.
"""
