"""k of n: the data key is shared among keyrings, and no fewer than `threshold` of them open it."""

from collections.abc import Callable, Mapping, Sequence

from tapeseal.datakey import DataKey, Keyring, leaves
from tapeseal.keyrings.any_of import open_any
from tapeseal.layout import Recipient


class Quorum:
    """A keyring that shares each data key among several, of which any `threshold` together open it.

    The key is made and split here (Shamir's method, FORMAT 3); no keyring, nor the service behind
    it, ever has more than a share. Opening needs any `threshold` of them, as Quorum or as AnyOf. Of
    what is wrapped whole for one of the keyrings that one is enough.

    In AnyOf a Quorum stands beside others: AnyOf([Quorum(2, [kms, vault]), escrow]).

    Args:
        threshold: how many shares give the key, at least 2.
        keyrings: as many as threshold and more, each with wrapping keys of its own.

    Raises:
        ValueError: another threshold, or one of the keyrings is, or holds, a Quorum itself.
    """

    threshold: int
    keyrings: tuple[Keyring, ...]

    def __init__(self, threshold: int, keyrings: Sequence[Keyring]) -> None:
        if not 2 <= threshold <= len(keyrings) <= 255:
            raise ValueError(
                f"a quorum of {threshold} of {len(keyrings)} keyrings is not possible: it takes 2 "
                "and more of at most 255; AnyOf is for those of which one is enough"
            )
        if any(map(_has_quorum, keyrings)):
            raise ValueError("a share cannot be shared again: a quorum holds no other")
        self.threshold = threshold
        self.keyrings = tuple(keyrings)

    def generate(self, encryption_context: Mapping[str, str]) -> tuple[DataKey, list[Recipient]]:
        """Make a data key and have each keyring wrap a share of it; errors as wrap()."""
        data_key = DataKey.generate()
        try:
            return data_key, self.wrap(data_key, encryption_context)
        except BaseException:
            data_key.close()
            raise

    def wrap(self, data_key: DataKey, encryption_context: Mapping[str, str]) -> list[Recipient]:
        """Split an existing data key and have each keyring wrap a share.

        Raises:
            KeyUnavailableError: one of them could not.
            ValueError: two of them wrap under one key, which would hold two shares.
        """
        indices = range(1, len(self.keyrings) + 1)
        shares = data_key.split(self.threshold, indices)
        try:
            return self._shared(
                lambda keyring, index: keyring.wrap(shares[index], encryption_context)
            )
        finally:
            for share in shares.values():
                share.close()

    def unwrap(
        self, recipients: Sequence[Recipient], encryption_context: Mapping[str, str]
    ) -> DataKey:
        """Gather shares and put the data key together, where no keyring has it whole.

        Raises:
            InvalidTag: there were too few, and one was changed.
            KeyUnavailableError: there were too few, for the reasons that it lists.
        """
        return open_any(leaves(self), recipients, encryption_context)

    def pending(self) -> list[Recipient]:
        """Name the recipients of every keyring; errors as Keyring.pending()."""
        return self._shared(lambda keyring, index: keyring.pending())

    def _shared(self, of: Callable[[Keyring, int], list[Recipient]]) -> list[Recipient]:
        """Return the recipients of each keyring with its share's number; they number 1, 2, ..."""
        recipients: list[Recipient] = []
        for index, keyring in enumerate(self.keyrings, 1):
            made = of(keyring, index)
            for each in recipients:
                if any(each[:2] == other[:2] for other in made):
                    raise ValueError(
                        f"{each.provider}:{each.key} would hold two shares of the quorum"
                    )
            recipients += [each._replace(share=(0, self.threshold, index)) for each in made]
        return recipients

    def __repr__(self) -> str:
        return f"Quorum({self.threshold}, {list(self.keyrings)!r})"


def _has_quorum(keyring: Keyring) -> bool:
    return isinstance(keyring, Quorum) or any(map(_has_quorum, getattr(keyring, "keyrings", ())))
