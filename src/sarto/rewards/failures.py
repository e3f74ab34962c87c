"""Kinds of failures of a scorer. Apart, because the processes of user code import nothing large."""

CODE_FAILURE, RPC_ERROR, LIMIT, NO_NUMBER, UNUSABLE = "code_failure", "rpc_error", "limit", "no_number", "unusable"
"""Kinds of failures: user code raised or ended; a model or URL did not answer; a limit of time, memory or length was
reached; the result is no number; the expression of this row is no regular expression."""
KINDS = frozenset({CODE_FAILURE, RPC_ERROR, LIMIT, NO_NUMBER, UNUSABLE})
