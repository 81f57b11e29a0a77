"""The program `age`, with a key pair, as Debian packages it."""

import filecmp
import subprocess

from benchmarks.harness import Job, Settings


def version() -> str:
    """What `age --version` says."""
    answer = subprocess.run(["age", "--version"], check=True, capture_output=True, text=True)
    return answer.stdout.strip()


def file(settings: Settings, opening: bool) -> Job:
    """Encrypt or decrypt a file."""
    name = "age-decrypt" if opening else "age-encrypt"
    identity, sealed, back = (settings.path(f"{name}{end}") for end in (".key", ".age", ".out"))
    identity.unlink(missing_ok=True)
    subprocess.run(["age-keygen", "-o", identity], check=True, capture_output=True)
    derive = ["age-keygen", "-y", str(identity)]
    recipient = subprocess.run(derive, check=True, capture_output=True, text=True).stdout.strip()

    def encrypt() -> None:
        subprocess.run(["age", "-r", recipient, "-o", sealed, settings.source], check=True)

    def decrypt() -> None:
        subprocess.run(["age", "-d", "-i", identity, "-o", back, sealed], check=True)

    encrypt()
    decrypt()
    assert filecmp.cmp(settings.source, back, shallow=False)
    back.unlink()
    if opening:
        return Job(decrypt, settings.file_size, after=back.unlink)
    sealed.unlink()
    return Job(encrypt, settings.file_size, after=sealed.unlink)
