"""Several keyrings as one: what any of them can open, all of them together can."""

from collections.abc import Mapping, Sequence

from tapeseal.datakey import DataKey, Keyring
from tapeseal.errors import InvalidTag, KeyUnavailableError, PassphraseError
from tapeseal.layout import Recipient


class AnyOf:
    """A keyring over several: the first generates, the others wrap as well, and any one opens.

    Args:
        keyrings: one and more, in the order in which they are tried.

    Raises:
        ValueError: there is none.
    """

    keyrings: tuple[Keyring, ...]

    def __init__(self, keyrings: Sequence[Keyring]) -> None:
        if not keyrings:
            raise ValueError("AnyOf needs a keyring")
        self.keyrings = tuple(keyrings)

    def generate(self, encryption_context: Mapping[str, str]) -> tuple[DataKey, list[Recipient]]:
        """Make a data key with the first keyring and have every other one wrap it too.

        Raises:
            KeyUnavailableError: one of them could not.
        """
        first, *others = self.keyrings
        data_key, recipients = first.generate(encryption_context)
        try:
            for keyring in others:
                recipients = recipients + keyring.wrap(data_key, encryption_context)
        except BaseException:
            data_key.close()
            raise
        return data_key, recipients

    def wrap(self, data_key: DataKey, encryption_context: Mapping[str, str]) -> list[Recipient]:
        """Wrap an existing data key with every keyring; errors as generate()."""
        return [
            recipient
            for keyring in self.keyrings
            for recipient in keyring.wrap(data_key, encryption_context)
        ]

    def unwrap(
        self, recipients: Sequence[Recipient], encryption_context: Mapping[str, str]
    ) -> DataKey:
        """Unwrap the data key with the first keyring that can.

        Raises:
            InvalidTag: none could, and one found a recipient of its own that was changed.
            KeyUnavailableError: none could, for the reasons that it lists; a PassphraseError where
                a passphrase is one of them.
        """
        changed: InvalidTag | None = None
        unavailable: list[KeyUnavailableError] = []
        for keyring in self.keyrings:
            try:
                return keyring.unwrap(recipients, encryption_context)
            except InvalidTag as error:
                changed = error
            except KeyUnavailableError as error:
                unavailable.append(error)
        try:
            raise changed or _summary(unavailable)
        finally:
            del changed, unavailable  # Whose tracebacks hold this frame.

    def __repr__(self) -> str:
        return f"AnyOf({list(self.keyrings)!r})"


def _summary(errors: Sequence[KeyUnavailableError]) -> KeyUnavailableError:
    if len(errors) == 1:
        return errors[0]
    asked = any(isinstance(error, PassphraseError) for error in errors)
    kind = PassphraseError if asked else KeyUnavailableError
    return kind("none of the keyrings opens it: " + "; ".join(map(str, errors)))
