"""Every exception and warning of tapeseal.

`TapesealError` catches them all. `tapeseal.cli.failures` says which exit code each leads to.
"""


class TapesealError(Exception):
    """The base of every error that tapeseal raises by itself."""


class InvalidTag(TapesealError):
    """What was opened is not what was sealed: wrong key, changed bytes or other associated data.

    `index` is the position of the first such message in a batch, 0 for a single one.
    """

    def __init__(self, index: int = 0) -> None:
        super().__init__(f"authentication failed (message {index} of the call)")
        self.index = index


class CiphertextError(InvalidTag):
    """A KMS or a Vault does not open a ciphertext: it, its key or what is bound to it was changed.

    The message names the key, and says what the service answered.
    """

    def __init__(self, message: str) -> None:
        TapesealError.__init__(self, message)
        self.index = 0

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return type(self), (str(self),)


class WrappedKeyError(CiphertextError):
    """A recipient names a key of ours, but does not open: it, its key or the encryption context was changed."""


class ForkError(TapesealError, RuntimeError):
    """The key or tape was opened in another process; a fork takes no keys along."""


class NotATapeError(TapesealError, ValueError):
    """The file carries no tape header at all."""


class DamagedError(TapesealError):
    """The tape was damaged or forged; nothing at or after `offset` was taken for good.

    `offset` is the byte of the file, or of the blob, at which the damaged part starts.
    """

    def __init__(self, problem: str, offset: int) -> None:
        super().__init__(f"{problem} (at byte {offset})")
        self.problem = problem
        self.offset = offset

    def __reduce__(self) -> tuple[type, tuple[str, int]]:
        return type(self), (self.problem, self.offset)


class UnsealedError(TapesealError):
    """The tape was never closed, so whether its end is the true end cannot be told."""


class ContextMismatchError(TapesealError, ValueError):
    """The tape's encryption context lacks a pair that the reader expects."""


class SignatureError(TapesealError):
    """What was signed is not what is there, or another key signed it."""


class KeyUnavailableError(TapesealError):
    """No key could be had: no recipient is ours, or a key file could not be used."""


class PassphraseError(KeyUnavailableError):
    """The passphrase does not open the key, or none was given for a key that needs one."""


class ServiceUnavailableError(KeyUnavailableError):
    """A KMS or a Vault could not be reached, was sealed, throttled or gave no whole answer in time; try again later."""


class OutcomeUnknownError(ServiceUnavailableError):
    """Whether a service has done what it was asked to, and must not do twice, is unknown: its answer was lost."""


class AccessDeniedError(KeyUnavailableError):
    """A KMS or a Vault refused: the credentials or the token are not valid, or a policy forbids it."""


class WrappingKeyError(KeyUnavailableError):
    """The wrapping key itself cannot be used: missing, disabled, pending deletion, or its version is retired."""


class CredentialError(KeyUnavailableError):
    """A Vault has no such credential to give, or what it gives cannot be used."""


class VaultRefusedError(TapesealError):
    """A Vault takes a request for wrong, and would again; the message has its own words, `status` that of HTTP."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status

    def __reduce__(self) -> tuple[type, tuple[str, int]]:
        return type(self), (str(self), self.status)


class SecretNotFoundError(TapesealError, KeyError):
    """There is no such secret, version or member."""

    __str__ = Exception.__str__  # That of KeyError shows the text in quotes.


class SecretDeletedError(SecretNotFoundError):
    """This version of a secret was deleted or destroyed; `version` is its number."""

    def __init__(self, message: str, version: int) -> None:
        super().__init__(message)
        self.version = version

    def __reduce__(self) -> tuple[type, tuple[str, int]]:
        return type(self), (str(self), self.version)


class VersionConflictError(TapesealError):
    """Somebody else wrote a version of the secret in between; nothing was written."""


class ReserveExhaustedError(KeyUnavailableError):
    """A reserve has no data key left, and its service has been away for longer than the outage budget."""


class CertificateError(TapesealError):
    """A Vault would not issue, sign or revoke a certificate, or one is not what was asked for or does not verify."""


class RotationError(TapesealError):
    """A step of the rotation of a secret could not be done, for a reason that waiting does not mend."""


class PlanError(TapesealError, ValueError):
    """A plan of rotations cannot be used.

    `problems` has all that is wrong with it, each with its place.
    """

    def __init__(self, path: str, problems: list[str]) -> None:
        shown = problems[:20]
        if len(problems) > len(shown):
            shown.append(f"and {len(problems) - len(shown)} more")
        super().__init__("\n  ".join([f"{path} is no plan:", *shown]))
        self.path = path
        self.problems = problems

    def __reduce__(self) -> tuple[type, tuple[str, list[str]]]:
        return type(self), (self.path, self.problems)


class CommandError(RotationError):
    """A command of a plan ended with another code than 0 and 75.

    `code` is that, or below 0 its signal's number; `said` the last line of its standard error.
    """

    def __init__(self, message: str, code: int, said: str) -> None:
        super().__init__(message)
        self.code = code
        self.said = said

    def __reduce__(self) -> tuple[type, tuple[str, int, str]]:
        return type(self), (str(self), self.code, self.said)


class IrreversibleError(RotationError):
    """The old secret is dead or nowhere to be had, so a rotation cannot be rolled back: it must go forward."""


class VerificationError(RotationError):
    """A target does not take the new secret; the message says what the target said."""


class TapeLockedError(TapesealError, BlockingIOError):
    """Another writer, or a rewrap, holds the tape."""


class TapeChangedError(TapesealError):
    """The file changed under its writer or follower; someone else cut or wrote it."""


class LimitError(TapesealError, OverflowError):
    """A limit of the format is reached; the message names it."""


class AuditError(TapesealError):
    """The audit log could not take an entry, so the operation was not begun or, where the message says so, is done."""


class UnlockedMemoryWarning(RuntimeWarning):
    """Key memory could not be locked (RLIMIT_MEMLOCK), so the system may swap it out."""
