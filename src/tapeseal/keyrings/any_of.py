"""Several keyrings as one: what any of them can open, all of them together can."""

import logging
from collections.abc import Mapping, Sequence

from tapeseal.datakey import DataKey, Keyring, leaves, named_recipients
from tapeseal.errors import (
    InvalidTag,
    KeyUnavailableError,
    PassphraseError,
    ServiceUnavailableError,
)
from tapeseal.layout import Recipient

_log = logging.getLogger(__name__)


class AnyOf:
    """A keyring over several: the first that can generates, the others wrap as well, and any one opens.

    It opens what is shared among its keyrings (see Quorum) too, where they hold shares enough.

    Args:
        keyrings: one and more, in the order in which they are tried.
        minimum: how many of them must wrap; those of the others that cannot are written down as
            pending, with a warning in the log, and `tapeseal rewrap --complete` adds them later.
            None: all must.

    Raises:
        ValueError: there is none, or not as many as minimum.
    """

    keyrings: tuple[Keyring, ...]
    minimum: int

    def __init__(self, keyrings: Sequence[Keyring], minimum: int | None = None) -> None:
        if not keyrings:
            raise ValueError("AnyOf needs a keyring")
        self.keyrings = tuple(keyrings)
        self.minimum = len(self.keyrings) if minimum is None else minimum
        if not 1 <= self.minimum <= len(self.keyrings):
            raise ValueError(f"minimum is 1 to {len(self.keyrings)}, as many keyrings as there are")

    def generate(self, encryption_context: Mapping[str, str]) -> tuple[DataKey, list[Recipient]]:
        """Make a data key with the first keyring that can and have every other one wrap it too.

        Raises:
            KeyUnavailableError: fewer than `minimum` could, or the recipients of one that could not
                are known to its service alone.
        """
        return self._wrap(None, encryption_context)

    def wrap(self, data_key: DataKey, encryption_context: Mapping[str, str]) -> list[Recipient]:
        """Wrap an existing data key with every keyring; errors as generate()."""
        return self._wrap(data_key, encryption_context)[1]

    def _wrap(
        self, given: DataKey | None, encryption_context: Mapping[str, str]
    ) -> tuple[DataKey, list[Recipient]]:
        data_key = given
        recipients: list[Recipient] = []
        failed: list[KeyUnavailableError] = []
        try:
            for keyring in self.keyrings:
                try:
                    if data_key is None:
                        data_key, made = keyring.generate(encryption_context)
                    else:
                        made = keyring.wrap(data_key, encryption_context)
                except KeyUnavailableError as error:
                    failed.append(error)
                    if len(failed) > len(self.keyrings) - self.minimum:
                        raise _summary(failed, "too few of the keyrings wrap") from None
                    made = keyring.pending()
                    _log.warning("pending: %s, since: %s", named_recipients(made), error)
                recipients += _next_groups(made, recipients)
            assert data_key is not None  # At least one did not fail.
            return data_key, recipients
        except BaseException:
            if data_key is not None and data_key is not given:
                data_key.close()
            raise
        finally:
            del failed  # Whose tracebacks hold this frame.

    def unwrap(
        self, recipients: Sequence[Recipient], encryption_context: Mapping[str, str]
    ) -> DataKey:
        """Unwrap the data key with the first keyring that can, or from shares that they hold together.

        Raises:
            InvalidTag: none could, and one found a recipient of its own that was changed.
            KeyUnavailableError: none could, for the reasons that it lists; a PassphraseError where
                a passphrase is one of them, else a ServiceUnavailableError where a service is.
        """
        return open_any(leaves(self), recipients, encryption_context)

    def pending(self) -> list[Recipient]:
        """Name the recipients of every keyring; errors as Keyring.pending()."""
        recipients: list[Recipient] = []
        for keyring in self.keyrings:
            recipients += _next_groups(keyring.pending(), recipients)
        return recipients

    def __repr__(self) -> str:
        minimum = "" if self.minimum == len(self.keyrings) else f", minimum={self.minimum}"
        return f"AnyOf({list(self.keyrings)!r}{minimum})"


def open_any(
    keyrings: Sequence[Keyring],
    recipients: Sequence[Recipient],
    encryption_context: Mapping[str, str],
) -> DataKey:
    """Unwrap the data key with the first keyring that can alone, else from the first group of shares.

    Of a group the first shares that open count, as many as the threshold, in the order of the
    recipients. Others are not looked at: where one of those was forged, so is the key.

    Raises:
        InvalidTag, KeyUnavailableError: as AnyOf.unwrap().
    """
    changed: InvalidTag | None = None
    unavailable: list[KeyUnavailableError] = []
    short: list[KeyUnavailableError] = []
    shares: dict[int, DataKey] = {}
    there: list[Keyring] = []
    try:
        for keyring in keyrings:
            try:
                return keyring.unwrap(recipients, encryption_context)
            except InvalidTag as error:
                changed = error
            except KeyUnavailableError as error:
                unavailable.append(error)
                if isinstance(error, ServiceUnavailableError):
                    continue
            there.append(keyring)
        groups: dict[int, list[Recipient]] = {}
        for each in recipients:
            if each.share is not None and each.wrapped is not None:
                groups.setdefault(each.share[0], []).append(each)
        for group, members in groups.items():
            for each in members:
                assert each.share is not None
                _, threshold, index = each.share
                if index in shares:
                    continue
                for keyring in tuple(there):
                    try:
                        shares[index] = keyring.unwrap(
                            [each._replace(share=None)], encryption_context
                        )
                        break
                    except InvalidTag as error:
                        changed = error
                    except KeyUnavailableError as error:
                        if type(error) is not KeyUnavailableError:  # More than: not one of ours.
                            short.append(error)
                        if isinstance(error, ServiceUnavailableError):
                            there.remove(keyring)  # Nobody waits for it a second time.
                if len(shares) == threshold:
                    return DataKey.combine(shares)
            short.append(
                KeyUnavailableError(
                    f"any {threshold} shares of group {group} give the key, "
                    f"and of {named_recipients(members)} {len(shares)} could be had"
                )
            )
            _close(shares)
        if groups:
            unavailable = [each for each in unavailable if type(each) is not KeyUnavailableError]
        raise changed or _summary(unavailable + short, "none of the keyrings opens it")
    finally:
        _close(shares)
        del changed, unavailable, short  # Whose tracebacks hold this frame.


def _close(shares: dict[int, DataKey]) -> None:
    for share in shares.values():
        share.close()
    shares.clear()


def _next_groups(new: Sequence[Recipient], before: Sequence[Recipient]) -> list[Recipient]:
    """Number the groups of shares among recipients as those that follow the ones before."""
    first = max((each.share[0] + 1 for each in before if each.share is not None), default=0)
    return [
        each
        if each.share is None
        else each._replace(share=(each.share[0] + first, *each.share[1:]))
        for each in new
    ]


def _summary(errors: Sequence[KeyUnavailableError], what: str) -> KeyUnavailableError:
    if len(errors) == 1:
        return errors[0]
    kinds = (PassphraseError, ServiceUnavailableError)
    kind = next(
        (kind for kind in kinds if any(isinstance(error, kind) for error in errors)),
        KeyUnavailableError,
    )
    return kind(f"{what}: " + "; ".join(map(str, errors)))
