"""A pool of database connections whose user and password come from Vault, and change under it.

    python examples/database_pool.py database/creds/reader "host=db dbname=trades"

VAULT_ADDR and VAULT_TOKEN say which Vault, and who asks. Needs psycopg 3 and psycopg_pool 3.3.
"""

import sys
import time

from psycopg_pool import ConnectionPool

from tapeseal.vault import DatabaseCredentials, VaultSession


def main(path: str, conninfo: str, seconds: float = 3.0) -> None:
    """Ask the database who we are, again and again, and print each new answer."""
    with (
        VaultSession() as session,
        DatabaseCredentials(session, path) as credentials,
        # Asked for user and password at each new connection.
        ConnectionPool(conninfo, kwargs=credentials.connect_kwargs, min_size=2, open=True) as pool,
    ):
        # Connections lose their rights with the credential that they were opened with: those at rest are replaced at
        # once, those in use when they come back, which is to be within the overlap.
        credentials.on_change(pool.drain)
        users: set[str] = set()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with pool.connection() as connection:
                row = connection.execute("SELECT current_user").fetchone()
            assert row is not None
            if row[0] not in users:
                users.add(row[0])
                print(row[0], flush=True)
            time.sleep(0.02)


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2], *map(float, sys.argv[3:]))
